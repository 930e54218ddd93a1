"""What a process repository promises, whatever keeps the data."""

from collections.abc import AsyncIterable, Callable, Collection, Iterable
from datetime import datetime
from typing import Literal, Protocol, TypeAlias
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process.errors import StoredDataError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, ProcessStatus, StateT, StepReply

OnUnreadable: TypeAlias = Literal["raise", "skip"] | Callable[[StoredDataError], object]
"""What to do about a row that cannot be read: raise the error, leave the row out, or call something with the error and
leave the row out. The error names the process."""


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

    async def save(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> None:
        """Insert a new process, all of its fields, together with its first commands, and set `process.version`.

        All of it or nothing, in one statement and one round trip. Waits for another transaction that is saving the same
        id, until that has ended.

        Args:
            process: The new process.
            conn: The caller's connection, if any.
            sent: One or several entries, as `log_step` takes them.

        Raises:
            ProcessAlreadyExistsError: The domain has a process of this id. It is untouched.
        """
        ...

    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        """Write status, current step, state, error code and message, and completion time of a process.

        The row's `updated_at` becomes the database's `now()` (the start of the transaction) and its version goes up by
        one; both are set on `process`. `created_at` and `process_type` are never written.

        An object that does not match its row is never written. The row is compared by its version, its `updated_at` and
        the transaction that wrote it. So an update by plain SQL is noticed, too. If you roll back, the same object can
        be updated again, as long as nobody else has written the row.

        Locks the process's row until the transaction ends; steps of it can still be logged.

        Raises:
            ConcurrentUpdateError: The row is not the one that the object was read from or written to. Nothing is
                written. A process whose version is `None` was never read, and is updated whatever the row is.
            ProcessNotFoundError: No such process.
            InvalidInputError: The row has another process type.
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
        self,
        domain: str,
        statuses: Collection[ProcessStatus],
        conn: AsyncConnection | None = None,
        *,
        process_type: str | None = None,
        limit: int | None = None,
        on_unreadable: OnUnreadable = "raise",
    ) -> list[ProcessMetadata[StateT]]:
        """Return the processes of the domain in any of the statuses, oldest first (`created_at`, then `process_id`).

        No statuses, no processes. Takes no lock. Without `limit`, all are held in memory. If the repository has a
        mapping as `state_type`, process types that it does not have are not looked for.

        Args:
            domain: Where to look.
            statuses: What to look for.
            conn: The caller's connection, if any.
            process_type: Only processes of this type.
            limit: How many at the most. Those that cannot be read do not count.
            on_unreadable: What to do about a process that cannot be read.

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
        on_unreadable: OnUnreadable = "raise",
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
            on_unreadable: What to do about a process that cannot be read. Those that are left out do not count, and
                are locked, too.

        Raises:
            InvalidInputError: The connection is in autocommit, where locks end with their statement.
            StoredStateError: A state does not fit its type; the error names the process. With `"raise"`, it stays in
                the way of the next `claim` until it is repaired.
            StoredDataError: The same, for another column.
        """
        ...

    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> bool:
        """Add an entry to the audit trail of a process, and return whether this call did it.

        The same entry again changes nothing, so a redelivered message is harmless. Entries are the same if step name,
        command id, type and data are (and the reply, where the entry comes with one); the first `sent_at` stays.

        Locks the process's row against deletion until the transaction ends, and against nothing else. Waits for another
        transaction that is logging the same command, until that has ended.

        Raises:
            ProcessNotFoundError: No such process, or not committed yet; retryable.
            StepAlreadyLoggedError: Another entry is logged under this command id. It is untouched.
        """
        ...

    async def update_step_reply(
        self,
        domain: str,
        process_id: UUID,
        command_id: UUID,
        entry: ProcessAuditEntry | StepReply,
        conn: AsyncConnection | None = None,
    ) -> bool:
        """Record the reply to a command, and return whether this call did it.

        Of an entry, outcome, data and time of the reply are recorded, and nothing else. A reply without `received_at`
        was received now. The same reply again (outcome and data) changes nothing, and the first `received_at` stays.

        Locks the step's row until the transaction ends. In the caller's transaction, the process is locked first,
        as `update` and `advance` lock it: so transactions that record a reply and then update the process do not wait
        for each other. Without `conn`, a reply is recorded while others hold the process.

        Raises:
            InvalidInputError: The reply is to another command.
            StepNotFoundError: The process has no step with this command id, or it is not committed yet; retryable.
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
        """Return the names of the steps whose reply was `SUCCESS`, in the order in which they were logged.

        The clocks of the workers do not count. A step that succeeded twice is there twice: each time needs its
        compensation. Compensations are steps, too: `get_steps_to_compensate` leaves them and what they undid out. Takes
        no lock.
        """
        ...

    async def get_steps_to_compensate(
        self,
        domain: str,
        process_id: UUID,
        conn: AsyncConnection | None = None,
        *,
        include_unknown: bool = False,
    ) -> list[ProcessAuditEntry]:
        """Return the steps that must be undone, with their replies, the one that was logged last first.

        These are the steps that succeeded, are no compensations, and that no successful compensation names in its
        `compensates`. Takes no lock.

        Args:
            domain: The process's domain.
            process_id: Its id.
            conn: The caller's connection, if any.
            include_unknown: Also the commands that were sent and not answered: nobody knows what they did.

        Raises:
            StoredDataError: An entry has a value that this version does not know; the error names the command.
        """
        ...

    async def advance(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        reply: ProcessAuditEntry | StepReply | None = None,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> bool:
        """Take one step: record the reply that came, log the commands that go out, and update the process.

        All of it or nothing, in one statement and one round trip. If it cannot be done, one or more statements find out
        why.

        Returns whether this call took the step. `False`: it was taken already, which its reply and its commands show;
        their times and the process do not count. Then nothing is written, and an object whose content the row does not
        have must be read again before it is written. A step without reply and commands cannot be recognised.

        Locks the row of the process, then that of the replied step, until the transaction ends. With several commands
        on the caller's connection, a savepoint keeps the transaction alive if another transaction logs one of them at
        this moment; that costs two round trips.

        Args:
            process: As it is to be, and as `update` takes it, but with a version.
            conn: The caller's connection, if any.
            reply: An entry with a reply. Its `command_id` names the step that it answers.
            sent: One or several entries, as `log_step` takes them.

        Raises:
            ConcurrentUpdateError: The row is not the one that the object was read from or written to.
            ProcessNotFoundError: No such process.
            StepNotFoundError: The process has no step with the reply's command id, or it is not committed yet.
            ReplyConflictError: A reply to it is recorded already: another one, or the same (`is_same`) without one of
                the commands.
            StepAlreadyLoggedError: An entry is logged under the command id of one that is to be sent: another one, or
                the same (`is_same`) without the rest of the step.
        """
        ...

    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        """Insert new processes as `save` does, all or none, and return how many.

        The iterable is consumed lazily and written in batches of up to 1,000. At most two batches are in memory. Each
        process gets its version when its batch is written. After an error, none of them is stored: your own connection
        is rolled back to a savepoint. Nothing is run again, so a conflict raises `TransactionConflictError` under every
        isolation level.

        Raises:
            ProcessAlreadyExistsError: An id is taken, in the table or by another of the processes. `other_errors` has
                the errors about other processes of the same batch.
            InvalidInputError: A process cannot be stored; the error names its position, `processes[17].state`. Or the
                connection is in autocommit.
        """
        ...

    async def log_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        """Add entries to audit trails as `log_step` does, all or none; return how many were new.

        Written in batches, and inside a savepoint on the caller's connection, as `save_many` does.

        Args:
            steps: For each entry, the domain and the id of its process, and the entry.
            conn: The caller's connection, if any.

        Raises:
            ProcessNotFoundError: A process does not exist.
            StepAlreadyLoggedError: Another entry is logged under the command id of one, or is given before it.
                `other_errors` has the errors about other entries of the same batch.
            InvalidInputError: An entry cannot be stored; the error names its position, `steps[17].command_data`. Or the
                connection is in autocommit.
        """
        ...
