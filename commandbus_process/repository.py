"""What a process repository promises, whatever keeps the data."""

from collections.abc import AsyncIterable, Collection, Iterable
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, ProcessStatus, StateT


class ProcessRepository(Protocol[StateT]):
    """The state of process managers, and the audit trail of their steps.

    Every method takes `conn`. With a connection, the method's statements run in the caller's transaction, which it
    never begins, commits, rolls back or closes: what the caller rolls back is gone. Without one, the method is one
    atomic unit of its own: a single statement in autocommit, or, for many items, a transaction.

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

        A long state (2,000 characters of JSON or more) that the row is known to have at this version, since this object
        was read or written last, is not sent again.

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

    async def advance(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        reply: ProcessAuditEntry | None = None,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> None:
        """Take one step: record the reply that came, log the commands that go out, and update the process.

        All of it or nothing, in one statement and one round trip; where it cannot be done, one or more statements find
        out why. The same step again, from the same object or from one that was read before the first time, changes
        nothing and sets what the first time has set, as long as the process has not gone on since.

        Locks the rows of the replied step and of the process until the transaction ends. With several commands on a
        connection of the caller's, a savepoint keeps the transaction alive where another transaction logs one of them
        at this moment; that costs two round trips.

        Args:
            process: As it is to be, and as `update` takes it, but with a version.
            conn: The caller's connection, if any.
            reply: An entry with a reply. Its `command_id` names the step that it answers.
            sent: One or several entries, as `log_step` takes them.

        Raises:
            ConcurrentUpdateError: The row is not at `process.version` any more.
            ProcessNotFoundError: No such process.
            StepNotFoundError: The process has no step with the reply's command id.
            ReplyConflictError: A reply to it is recorded already, another one or the same.
            StepAlreadyLoggedError: An entry is logged under the command id of one that is to be sent.
        """
        ...

    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        """Insert new processes as `save` does, all or none, and return how many.

        They are asked for as they are needed and sent in batches of up to 1,000, two of which are in memory. Each gets
        its version as its batch is written; after an error, none of them is stored. With a connection of the caller's
        a savepoint is what makes it all or none. Nothing is run again: on every level, `TransactionConflictError` tells
        of a transaction that was aborted for another one's sake.

        Raises:
            ProcessAlreadyExistsError: An id is taken, in the table or by another of the processes. `others` has the
                errors about others of the same batch.
            InvalidInputError: One cannot be stored; the error names its position, `processes[17].state`. Also a
                connection in autocommit.
        """
        ...

    async def log_steps(
        self,
        domain: str,
        process_id: UUID,
        entries: Iterable[ProcessAuditEntry] | AsyncIterable[ProcessAuditEntry],
        conn: AsyncConnection | None = None,
    ) -> int:
        """Add entries to the audit trail of a process as `log_step` does, all or none; return how many were new.

        In batches, and with a savepoint, as `save_many`.

        Raises:
            ProcessNotFoundError: No such process.
            StepAlreadyLoggedError: Another entry is logged under the command id of one, or given before it. `others`
                has the errors about others of the same batch.
            InvalidInputError: One cannot be stored; the error names its position, `entries[17].command_data`. Also a
                connection in autocommit.
        """
        ...

    async def log_steps_of_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        """Add entries to the audit trails of many processes; return how many were new.

        As `log_steps`, for (domain, process id, entry) each; an error names `steps[17].command_data`.
        """
        ...
