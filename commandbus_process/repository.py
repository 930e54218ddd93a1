"""What a process repository promises, whatever keeps the data."""

from collections.abc import Collection
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, ProcessStatus, StateT


class ProcessRepository(Protocol[StateT]):
    """The state of process managers, and the audit trail of their steps.

    Every method takes `conn`. With a connection, the method's statements run in the caller's transaction, which it
    never begins, commits, rolls back or closes: what the caller rolls back is gone. Without one, the method is one
    atomic unit of its own.

    Every method raises `InvalidInputError`, before any SQL, for an argument that cannot be stored. On a caller's
    connection, under REPEATABLE READ and SERIALIZABLE, every method that is about one process raises
    `ConcurrentUpdateError` where PostgreSQL aborts the transaction for another one's sake, the others
    `TransactionConflictError`; on every level, `DeadlockError`. After all other errors of this package the caller's
    transaction goes on. Times are aware, and come back in UTC.
    """

    async def save(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        """Insert a new process, all of its fields, and set `process.version`.

        Waits for another transaction that is saving the same id, until that has ended.

        Raises:
            ProcessAlreadyExistsError: The domain has a process of this id. It is untouched.
        """
        ...

    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        """Write status, current step, state, error code and message, and completion time of a process.

        The row's `updated_at` becomes the database's `now()` (the start of the transaction) and its version goes up by
        one; both are set on `process`. Where the caller rolls back afterwards, the object is ahead of the row: read the
        process again before the next update, which raises `ConcurrentUpdateError` otherwise.

        Locks the process's row until the transaction ends; steps of it can still be logged.

        Raises:
            ConcurrentUpdateError: The row is not at `process.version` any more. Nothing is written. A process whose
                version is `None` was never read, and is updated whatever the row's version.
            ProcessNotFoundError: No such process.
        """
        ...

    async def get_by_id(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        for_update: Literal[False, True, "nowait", "skip_locked"] = False,
    ) -> ProcessMetadata[StateT] | None:
        """Return the process, or `None`.

        By default it takes no lock: `update` finds out whether the process was changed since. With `for_update`, which
        needs `conn`, the process's row is locked until the transaction ends (FOR NO KEY UPDATE): other writers of the
        process, and others who lock it, wait; its steps can still be logged and replied to. Where another transaction
        holds the lock, `True` waits for it, `"skip_locked"` returns `None`, and `"nowait"` raises.

        Raises:
            ProcessLockedError: With `"nowait"`, another transaction holds the process. The caller's goes on.
            StoredStateError: Its state does not fit its type.
            StoredDataError: Another of its columns has a value that this version does not know.
        """
        ...

    async def find_by_status(
        self, domain: str, statuses: Collection[ProcessStatus], conn: AsyncConnection | None = None
    ) -> list[ProcessMetadata[StateT]]:
        """Return all processes of the domain in any of the statuses, oldest first (`created_at`, then `process_id`).

        No statuses, no processes. Takes no lock. The list is not limited: it is held in memory.

        Raises:
            StoredStateError: A state does not fit its type; the error names the process.
            StoredDataError: Another column has a value that this version does not know; the error names the process.
        """
        ...

    async def claim(
        self,
        domain: str,
        statuses: Collection[ProcessStatus],
        conn: AsyncConnection,
        *,
        limit: int,
        process_type: str | None = None,
        updated_before: datetime | None = None,
    ) -> list[ProcessMetadata[StateT]]:
        """Return up to `limit` processes that no other transaction holds, oldest first, and lock them.

        For workers that share a backlog: each gets others. The locks (FOR NO KEY UPDATE) last until the caller's
        transaction ends, so what is claimed is to be changed, or at least looked at, in it. A process that is held by
        another transaction is passed over, and never waited for.

        Args:
            domain: Where to look.
            statuses: What to look for; none of them, no processes.
            conn: The caller's connection, which is needed here.
            limit: How many at the most; 1 or more.
            process_type: Only processes of this type.
            updated_before: Only processes that have not been updated since, an aware datetime: those that are stuck.

        Raises:
            StoredStateError: A state does not fit its type; the error names the process. All that were found are
                locked, and stay in the way of the next `claim` until the process named is repaired.
            StoredDataError: The same, for another column.
        """
        ...

    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> None:
        """Add an entry to the audit trail of a process.

        The same entry again changes nothing, so a redelivered message is harmless. Entries are the same if step name,
        command id, type and data are (and the reply, where the entry comes with one); the first `sent_at` stays.

        Locks the process's row against deletion until the transaction ends, and against nothing else. Waits for another
        transaction that is logging the same command, until that has ended.

        Raises:
            ProcessNotFoundError: No such process.
            StepAlreadyLoggedError: Another entry is logged under this command id. It is untouched.
        """
        ...

    async def update_step_reply(
        self,
        domain: str,
        process_id: UUID,
        command_id: UUID,
        entry: ProcessAuditEntry,
        conn: AsyncConnection | None = None,
    ) -> None:
        """Record the reply to a command: outcome, data and time, and nothing else of `entry`.

        A reply without `received_at` was received now. The same reply again (outcome and data) changes nothing, and the
        first `received_at` stays.

        Locks the step's row until the transaction ends.

        Raises:
            StepNotFoundError: The process has no step with this command id.
            ReplyConflictError: Another reply is recorded. It is untouched.
        """
        ...

    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        """Return the entries by `sent_at`; equal times in the order they were logged. No process, no entries.

        Takes no lock.

        Raises:
            StoredDataError: An entry has a value that this version does not know; the error names the command.
        """
        ...

    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        """Return the names of the steps whose reply was `SUCCESS`, in the order of the trail.

        A step that succeeded twice is there twice: each time needs its compensation. Takes no lock.
        """
        ...
