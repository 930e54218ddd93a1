"""The protocol: what a process repository promises, whatever stores the data."""

from collections.abc import AsyncIterable, Callable, Collection, Iterable
from datetime import datetime
from typing import Literal, Protocol, TypeAlias
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process.errors import StoredDataError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, ProcessStatus, StateT, StepReply

OnUnreadable: TypeAlias = Literal["raise", "skip"] | Callable[[StoredDataError], object]
"""What to do with a row that cannot be read.

`"raise"` raises the error, which names the process. `"skip"` leaves the row out. A callable is called with the error,
and the row is left out.
"""


class ProcessRepository(Protocol[StateT]):
    """The state of process managers, and the audit trail of their steps.

    Every method takes `conn`. If you pass a connection, the method's statements run in your transaction. No method
    begins, commits, rolls back or closes it. If you roll back, nothing is stored. Without `conn`, each call is atomic
    by itself: a single statement in autocommit or, for many items, a transaction.

    Every method raises `InvalidInputError`, before any SQL, if an argument cannot be stored. Times are timezone-aware,
    and are returned in UTC.

    On your own connection, PostgreSQL may abort the transaction because of a concurrent one. Under REPEATABLE READ or
    SERIALIZABLE, methods about one process then raise `ConcurrentUpdateError`, and the others
    `TransactionConflictError`. A deadlock raises `DeadlockError` under every isolation level. If a `lock_timeout` ends
    a wait, the error is `ProcessLockedError`. After any other error of this package your transaction can go on, unless
    the error's own description says otherwise.
    """

    async def save(
        self,
        process: ProcessMetadata[StateT],
        conn: AsyncConnection | None = None,
        *,
        sent: ProcessAuditEntry | Iterable[ProcessAuditEntry] = (),
    ) -> None:
        """Insert a new process and its first commands, and set `process.version`.

        All fields of the process are written. All of it is written, or nothing, in one statement and one round trip.
        If another transaction is saving the same id, this call waits until that transaction has ended.

        Args:
            process: The new process.
            conn: Your connection, if any.
            sent: The first commands: one entry or several, as `log_step` takes them.

        Raises:
            ProcessAlreadyExistsError: The domain has a process with this id. The stored process is unchanged.
        """
        ...

    async def update(self, process: ProcessMetadata[StateT], conn: AsyncConnection | None = None) -> None:
        """Write status, current step, state, deadline, error code and message, and completion time of a process.

        `updated_at` becomes the database's `now()` (the start of the transaction), and the version goes up by one. Both
        are set on `process`. `created_at`, `process_type` and `business_key` are never written.

        The update is written only if the object still matches its row. The row is compared by its version, its
        `updated_at` and the transaction that wrote it, so an update by plain SQL is noticed, too. If you roll back, you
        can update the same object again, as long as nobody else has written the row.

        Locks the process's row until the transaction ends. Steps of the process can still be logged.

        Raises:
            ConcurrentUpdateError: The row has changed since the object was read or written. Nothing is written. An
                object with the version `None` was never read: it is written without this check.
            ProcessNotFoundError: The process does not exist.
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

        By default it takes no lock. `update` later detects whether the process has changed since.

        With `for_update`, which needs `conn`, the process's row is locked until the transaction ends (FOR NO KEY
        UPDATE). Others who write or lock the process then wait. Steps of the process can still be logged, and replies
        recorded without `conn`. If another transaction holds the lock, `True` waits for it, `"skip_locked"` returns
        `None`, and `"nowait"` raises.

        Raises:
            ProcessLockedError: With `"nowait"`, another transaction holds the process. Your transaction can go on.
            StoredStateError: The state does not fit its type.
            StoredDataError: Another column has a value that this version does not know.
        """
        ...

    async def get_by_ids(
        self,
        domain: str,
        process_ids: Iterable[UUID],
        conn: AsyncConnection | None = None,
        *,
        on_unreadable: OnUnreadable = "raise",
    ) -> dict[UUID, ProcessMetadata[StateT]]:
        """Return the processes with these ids, by their ids and in their order. Those that do not exist are left out.

        All are read in one statement and one round trip, and held in memory. Takes no lock.

        Args:
            domain: The processes' domain.
            process_ids: The ids. An id that is given twice counts once.
            conn: Your connection, if any.
            on_unreadable: What to do with a process that cannot be read.

        Raises:
            StoredStateError: A state does not fit its type. The error names the process.
            StoredDataError: Another column has a value that this version does not know. The error names the process.
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

        Takes no lock. Without `limit`, all processes are held in memory. If the repository has a mapping as
        `state_type`, only processes of the types in it are returned.

        Args:
            domain: The domain to search.
            statuses: The statuses to look for. An empty collection returns an empty list.
            conn: Your connection, if any.
            process_type: Return only processes of this type.
            limit: The maximum number. Processes that cannot be read do not count.
            on_unreadable: What to do with a process that cannot be read.

        Raises:
            StoredStateError: A state does not fit its type. The error names the process.
            StoredDataError: Another column has a value that this version does not know. The error names the process.
        """
        ...

    async def claim(  # noqa: PLR0913 - one argument for each condition
        self,
        domain: str,
        statuses: Collection[ProcessStatus],
        conn: AsyncConnection,
        *,
        limit: int,
        process_type: str | None = None,
        current_step: str | None = None,
        business_key: str | None = None,
        updated_before: datetime | None = None,
        deadline_before: datetime | None = None,
        on_unreadable: OnUnreadable = "raise",
        by: Literal["lock", "version"] = "lock",
    ) -> list[ProcessMetadata[StateT]]:
        """Lock up to `limit` processes that no other transaction holds, and return them, oldest first.

        With `deadline_before`, those with the earliest deadlines come first.

        For workers that share a backlog: each worker gets different processes. The locks (FOR NO KEY UPDATE) last until
        your transaction ends, so do the work in that transaction. A process that another transaction holds is skipped.
        The call never waits for it. It is one statement, and more only if rows cannot be read.

        With `by="version"`, candidates are read without a lock, and those that nobody has changed since are taken. Each
        is taken by a statement of its own, which raises its version and sets `updated_at`. It is for servers that skip
        locked rows of one process only, as Citus. The objects have the new version. The locks are the same, and this
        call never waits for a process either. It differs in this:

        - It takes a round trip, and one more for each process that it tries.
        - It may return fewer processes than there are: it stops if others win three in a row and it has won some. If it
          has won none, it tries the next ones, in random order. An empty list means that others hold what is left.
        - After a rollback, the versions are as they were. The objects can be written again, as after `update`.

        Args:
            domain: The domain to search.
            statuses: The statuses to look for. An empty collection returns an empty list.
            conn: Your connection. It is required.
            limit: The maximum number, 1 or more.
            process_type: Claim only processes of this type.
            current_step: Claim only processes that are in this step.
            business_key: Claim only processes with this business key.
            updated_before: Claim only processes that were last updated before this time: those that are stuck. It must
                be timezone-aware. No index serves it: the whole backlog in these statuses may be read, so prefer
                `deadline_before`.
            deadline_before: Claim only processes whose deadline is before this time. No more are read than returned.
            on_unreadable: What to do with a process that cannot be read. Processes that are left out do not count, but
                they are locked, too. With `by="version"`, their versions are raised, too.
            by: How processes are taken: `"lock"` or `"version"`.

        Raises:
            InvalidInputError: The connection is in autocommit, where locks end with their statement.
            StoredStateError: A state does not fit its type. The error names the process. With `"raise"`, that process
                blocks the next `claim`, too, until it is repaired.
            StoredDataError: The same, for another column.
        """
        ...

    async def log_step(
        self, domain: str, process_id: UUID, entry: ProcessAuditEntry, conn: AsyncConnection | None = None
    ) -> bool:
        """Add an entry to the audit trail of a process. Return whether this call added it.

        If the same entry is logged already, nothing changes and the call returns `False`. So a redelivered message is
        harmless. Two entries are the same if their step name, command id, command type, command data and `compensates`
        are equal and, if the new entry has a reply, the outcome and data of the replies as well. The first `sent_at`
        stays.

        Locks the process's row until the transaction ends, but only against deletion. If another transaction is logging
        the same command, this call waits until that transaction has ended.

        Raises:
            ProcessNotFoundError: The process does not exist, or is not committed yet. Retryable.
            StepAlreadyLoggedError: Another entry is logged under this command id. The stored entry is unchanged.
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
        """Record the reply to a command. Return whether this call recorded it.

        If you pass an entry, only the outcome, data and time of its reply are recorded. Without `received_at`, the
        current time is recorded. If the same reply (outcome and data) is recorded already, nothing changes and the call
        returns `False`. The first `received_at` stays.

        Locks the step's row until the transaction ends. In your transaction, the process's row is locked first, as
        `update` and `advance` lock it. So two transactions that record a reply and then update the process cannot
        deadlock. Without `conn`, the process is not locked: the reply is recorded even while another transaction holds
        the process.

        Raises:
            InvalidInputError: The reply is to another command.
            StepNotFoundError: The process has no step with this command id, or it is not committed yet. Retryable.
            ReplyConflictError: Another reply is recorded. The stored reply is unchanged.
        """
        ...

    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[ProcessAuditEntry]:
        """Return all entries of a process, ordered by `sent_at`. Equal times are in the order of logging.

        If the process does not exist, the list is empty. Takes no lock.

        Raises:
            StoredDataError: An entry has a value that this version does not know. The error names the command.
        """
        ...

    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        """Return the names of the steps whose reply was `SUCCESS`, in the order in which they were logged.

        The order does not depend on the workers' clocks. A step that succeeded twice is in the list twice, because each
        time needs its own compensation. Compensations are steps, so they are in the list, too. To find what is left to
        undo, use `get_steps_to_compensate`. Takes no lock.
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
        """Return the steps that must be undone, with their replies. The step that was logged last comes first.

        A step must be undone if it succeeded, is not itself a compensation, and no successful compensation names it in
        `compensates`. Takes no lock.

        Args:
            domain: The process's domain.
            process_id: The process's id.
            conn: Your connection, if any.
            include_unknown: Also return commands that were sent and not answered: nobody knows what they did.

        Raises:
            StoredDataError: An entry has a value that this version does not know. The error names the command.
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

        All of it is written, or nothing, in one statement and one round trip. If nothing was written, one or more
        further statements find out why.

        Returns `True` if this call took the step, and `False` if the step was taken before. A step was taken before if
        its reply and all of its commands are stored already; times and the process's own fields are not compared. After
        `False`, nothing is written. If the object then differs from its row, read it again before you write it. A step
        without a reply and without commands cannot be recognised as a repetition.

        Locks the process's row, then the row of the replied step, until the transaction ends. If you send several
        commands on your own connection, a savepoint keeps your transaction alive when another transaction logs one of
        them at the same moment. The savepoint costs two more round trips.

        Args:
            process: The process as it is after the step. It is checked as in `update`, and must have a version.
            conn: Your connection, if any.
            reply: The reply that came, if any. Its `command_id` names the step that it answers.
            sent: The next commands: one entry or several, as `log_step` takes them.

        Raises:
            ConcurrentUpdateError: The row has changed since the object was read or written.
            ProcessNotFoundError: The process does not exist.
            StepNotFoundError: The process has no step with the reply's command id, or it is not committed yet.
            ReplyConflictError: A reply to the command is recorded already. Either it is another reply, or it is the
                same (`is_same`) and one of the commands is missing.
            StepAlreadyLoggedError: One of the command ids is logged already. Either it is another entry, or it is the
                same (`is_same`) and the rest of the step is missing.
        """
        ...

    async def save_many(
        self,
        processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
        conn: AsyncConnection | None = None,
    ) -> int:
        """Insert new processes as `save` does, all or none. Return how many were inserted.

        The iterable is consumed lazily and written in batches of up to 1,000. At most two batches are in memory. Each
        process gets its version when its batch is written. After an error, none of the processes is stored: on your own
        connection, the call rolls back to a savepoint.

        The call is never repeated automatically, because the iterable can be read only once. So a serialization failure
        raises `TransactionConflictError`, and a deadlock `DeadlockError`, without `conn`, too.

        Raises:
            ProcessAlreadyExistsError: An id is taken, by a stored process or by another one in `processes`.
                `other_errors` has the errors about other processes of the same batch.
            InvalidInputError: A process cannot be stored. The error names its position: `processes[17].state`. Or the
                connection is in autocommit.
        """
        ...

    async def log_many(
        self,
        steps: Iterable[tuple[str, UUID, ProcessAuditEntry]] | AsyncIterable[tuple[str, UUID, ProcessAuditEntry]],
        conn: AsyncConnection | None = None,
    ) -> int:
        """Add entries to audit trails as `log_step` does, all or none. Return how many were new.

        The iterable is consumed lazily and written in batches of up to 1,000, inside a savepoint if you pass `conn`, as
        in `save_many`.

        Args:
            steps: For each entry: the domain and the id of its process, and the entry.
            conn: Your connection, if any.

        Raises:
            ProcessNotFoundError: A process does not exist, or is not committed yet. Retryable.
            StepAlreadyLoggedError: Another entry has the same command id. It is stored, or comes earlier in `steps`.
                `other_errors` has the errors about other entries of the same batch.
            InvalidInputError: An entry cannot be stored. The error names its position: `steps[17].command_data`. Or the
                connection is in autocommit.
        """
        ...
