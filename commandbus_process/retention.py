"""Retention: delete processes that ended long ago, with their steps, and erase what an ended process holds."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Annotated, Any, NamedTuple, TypeAlias
from uuid import UUID

from pydantic import Field, TypeAdapter
from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import _log
from commandbus_process._arguments import NAME, TIME, check_key, checked, sorted_statuses, unreadable_handler
from commandbus_process._state_versions import RawStates
from commandbus_process._states import States
from commandbus_process.errors import (
    InvalidInputError,
    ProcessNotEndedError,
    ProcessNotFoundError,
    TransactionConflictError,
)
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import (
    TERMINAL,
    JsonObject,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
)
from commandbus_process.postgres import _retention, _statements
from commandbus_process.postgres._database import Database, Tables
from commandbus_process.postgres._listing import Listing
from commandbus_process.postgres._reading import ProcessReader, Rows, read_entries, unquoted
from commandbus_process.postgres._transaction import (
    ATTEMPTS,
    RUN_AGAIN,
    get_sqlstate,
    pause,
    run,
    transaction,
    translated_errors,
)

_BATCH_SIZE: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=100_000)])

# In seconds. Half of what a batch may take, so that a slow one stays below that, too.
_WANTED = 0.25
_FIRST_BATCH = 100
_FOREIGN_KEY_VIOLATION = "23503"


class ProcessWithTrail(NamedTuple):
    """A process that is about to be deleted, with its whole trail.

    The state is the JSON that is stored. `process.state_version` says which version of its type it has.
    """

    process: ProcessMetadata[JsonObject]
    trail: list[ProcessAuditEntry]


BeforeDelete: TypeAlias = Callable[[AsyncConnection, list[ProcessWithTrail]], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class PurgeProgress:
    """How far a purge is, after one of its batches.

    Attributes:
        processes: How many processes it has deleted so far.
        steps: How many steps it has deleted so far.
        oldest_left: When the last process that it looked at was created. It has deleted what is due before this
            time, except processes that other transactions held. `None`: it has reached the end.
    """

    processes: int
    steps: int
    oldest_left: datetime | None


@dataclass(frozen=True, slots=True)
class PurgePreview:
    """What a purge would delete, of one process type and one month.

    Attributes:
        process_type: The type of the processes.
        month: The month in which they ended, in UTC, for example `2026-03`.
        processes: How many processes.
        steps: How many steps they have.
        bytes: About how many bytes all of these rows take up, as they are stored, without the indexes.
    """

    process_type: str
    month: str
    processes: int
    steps: int
    bytes: int


class _Batch(NamedTuple):
    seen: int
    last_key: str | None
    last_id: UUID | None
    processes: int
    steps: int


class ProcessRetention:
    """Deletes and erases processes that have ended. Safe to share between tasks.

    A process has ended if its status is terminal. The time of its end is `completed_at` or, if other software did not
    set that, `updated_at`. The role needs the rights of `python -m commandbus_process.grants ROLE --for purger`.

    Args:
        engine: The engine from which connections are borrowed. You configure it and dispose of it. Its isolation level
            does not matter.
        schema: The schema that has the tables. Without it, `commandbus`, or what a `schema_translate_map` of the engine
            or of your connection says.
    """

    def __init__(self, engine: AsyncEngine, *, schema: str | None = None) -> None:
        self._database = Database(engine, schema)
        self._reader: ProcessReader[JsonObject] = ProcessReader(States(RawStates()))

    def purge(
        self,
        domain: str,
        *,
        ended_before: datetime,
        statuses: Collection[ProcessStatus] = TERMINAL,
        process_type: str | None = None,
        batch_size: int = 1000,
        before_delete: BeforeDelete | None = None,
    ) -> AsyncGenerator[PurgeProgress]:
        """Delete processes that ended before a time, with their steps. Nothing happens until you iterate.

            async for progress in retention.purge("orders", ended_before=now - timedelta(days=90)):
                print(progress)

        Each batch is one short transaction, which is committed before its progress is yielded. You can stop after any
        of them, or be killed in the middle of one, and call it again later. Several can run at the same time: a process
        that another transaction holds is skipped, and left for the next call. A batch gets smaller if it takes longer
        than about a quarter of a second. Five round trips a batch. The processes are locked FOR UPDATE, and status and
        end are checked again in the statement that deletes them.

        It goes through the processes in the order in which they were created. A process that was created at
        `ended_before` or later is not looked at.

        A batch is run again after a deadlock or a serialization failure. `before_delete` then runs again, too.

        Args:
            domain: The domain of the processes.
            ended_before: Delete what ended before this time.
            statuses: Delete processes in these statuses. All must be terminal.
            process_type: Delete only processes of this type.
            batch_size: The maximum number of processes in a batch, from 1 to 100,000.
            before_delete: Awaited with the connection, and with the processes and trails that are about to be deleted,
                in the transaction that deletes them. Write an archive here. What it raises rolls the batch back, and is
                raised. It must not commit or roll back.

        Yields:
            The progress after each batch. The last one has no `oldest_left`.

        Raises:
            InvalidInputError: An argument does not fit. Raised by the call itself, before anything is deleted.
            StoredDataError: With `before_delete`: a process or a step cannot be read. Its batch is rolled back.
            DeadlockError, TransactionConflictError: A batch was aborted 50 times because of other transactions.
            ProcessLockedError: A `lock_timeout` ended the wait for a step that another transaction holds.
        """
        listing, values = _what_ended(domain, ended_before, statuses, process_type)
        size = checked(_BATCH_SIZE, "batch_size", batch_size)
        if before_delete is not None and not callable(before_delete):
            raise InvalidInputError("before_delete", "must be a function that takes the connection and a list")
        return self._purge(listing, values, size, before_delete)

    async def _purge(
        self, listing: Listing, values: dict[str, Any], batch_size: int, before_delete: BeforeDelete | None
    ) -> AsyncGenerator[PurgeProgress]:
        processes = steps = 0
        size = min(batch_size, _FIRST_BATCH)
        is_last = listing.is_empty
        if is_last:
            yield PurgeProgress(0, 0, None)
        while not is_last:
            listing.parameters["limit"] = size
            begun = perf_counter()
            batch = await self._run_batch(listing, values, before_delete)
            took = perf_counter() - begun
            processes, steps = processes + batch.processes, steps + batch.steps
            is_last = batch.seen < size
            oldest_left = None
            if not is_last and batch.last_key is not None:
                listing.parameters |= {"after_key": batch.last_key, "after_id": batch.last_id}
                oldest_left = _as_time(batch.last_key)
            size = _next_size(size, took, batch_size)
            yield PurgeProgress(processes, steps, oldest_left)

    async def _run_batch(self, listing: Listing, values: dict[str, Any], before_delete: BeforeDelete | None) -> _Batch:
        attempt = 0
        while True:
            attempt += 1
            try:
                async with transaction(self._database.engine) as connection:
                    return await self._batch(connection, listing, values, before_delete)
            except (DBAPIError, TransactionConflictError) as error:
                sqlstate = _lost_race(error)
                if sqlstate is None or attempt == ATTEMPTS:
                    raise
            _log.retried(attempt, sqlstate, None)
            await pause(attempt)

    async def _batch(
        self,
        connection: AsyncConnection,
        listing: Listing,
        values: dict[str, Any],
        before_delete: BeforeDelete | None,
    ) -> _Batch:
        # Under a stricter level, the statement that deletes would not see a step that was logged just before the lock.
        with translated_errors("domain"):
            await connection.execute(_retention.READ_COMMITTED)
            statement = _retention.lock_due(listing.statuses, listing.given)
            parameters = {**listing.parameters, **values}
            options = self._database.options
            found = (await connection.execute(statement, parameters, execution_options=options)).one()
        seen: int = found.seen
        last_key: str | None = None if found.last_key is None else unquoted(found.last_key)
        last_id: UUID | None = found.last_id
        held: list[UUID] | None = found.held
        if not held:
            return _Batch(seen, last_key, last_id, 0, 0)
        of_batch = {**values, "key_domain": listing.parameters["key_domain"], "process_ids": held}
        if before_delete is not None:
            await before_delete(connection, await connection.run_sync(self._read, of_batch))
        with translated_errors("domain"):
            statement = _retention.delete_ended(listing.statuses)
            deleted = (await connection.execute(statement, of_batch, execution_options=options)).one()
        return _Batch(seen, last_key, last_id, deleted.processes, deleted.steps)

    def _read(self, connection: Connection, values: dict[str, Any]) -> list[ProcessWithTrail]:
        """Read the processes of a batch, oldest first, with their trails."""
        tables = self._database.on(connection)
        processes = self._reader.read_all(
            Rows.all(tables.execute(_statements.GET_BY_IDS, values)), unreadable_handler("raise")
        )
        rows_of: dict[UUID, list[Any]] = {process.process_id: [] for process in processes}
        result = tables.execute(_retention.TRAILS, values)
        names = [name for name in result.keys() if name != "process_id"]  # noqa: SIM118 - not a dictionary
        for process_id, *entry in result:
            rows_of[process_id].append(entry)
        processes.sort(key=lambda process: (process.created_at, process.process_id))
        return [
            ProcessWithTrail(
                process, read_entries(process.domain, process.process_id, Rows(names, rows_of[process.process_id]))
            )
            for process in processes
        ]

    async def preview(
        self,
        domain: str,
        conn: AsyncConnection | None = None,
        *,
        ended_before: datetime,
        statuses: Collection[ProcessStatus] = TERMINAL,
        process_type: str | None = None,
    ) -> list[PurgePreview]:
        """Return what `purge` would delete, by process type and month, both ascending.

        It reads every process that is due, and the sizes of its steps, so it takes about as long as a query for all of
        them. One round trip; takes no lock.

        Args:
            domain: The domain of the processes.
            conn: Your connection, if any.
            ended_before: Count what ended before this time.
            statuses: Count processes in these statuses. All must be terminal.
            process_type: Count only processes of this type.

        Raises:
            InvalidInputError: An argument does not fit.
        """
        listing, values = _what_ended(domain, ended_before, statuses, process_type)
        if listing.is_empty:
            return []
        statement = _retention.preview(listing.statuses)

        def work(tables: Tables) -> list[PurgePreview]:
            found = tables.execute(statement, {**listing.parameters, **values})
            return [PurgePreview(*row) for row in found]

        return await run(self._database, conn, work)

    async def erase(self, domain: str, process_id: UUID, conn: AsyncConnection | None = None) -> bool:
        """Erase what an ended process holds, and keep that it was there.

        The state becomes `{}`. The error message, the business key, and the data of all commands and replies become
        NULL. Names, outcomes, error codes and times stay, `updated_at` too, so statistics stay true. The version goes
        up by one, so that an object that was read before cannot write its state back.

        Safe to repeat. Do repeat it if a reply arrives later: its data is stored like any other's. One round trip;
        locks the process FOR NO KEY UPDATE.

        Args:
            domain: The process's domain.
            process_id: The process's id.
            conn: Your connection, if any. Then it takes effect when you commit.

        Returns:
            Whether there was something to erase.

        Raises:
            ProcessNotFoundError: The process does not exist.
            ProcessNotEndedError: The process has not ended.
            ConcurrentUpdateError: On your connection, under REPEATABLE READ or SERIALIZABLE: another transaction
                changed the process.
        """
        check_key(domain, process_id)
        key = {"key_domain": domain, "key_process_id": process_id}

        def work(tables: Tables) -> Row[Any] | None:
            return tables.execute(_retention.ERASE, key).one_or_none()

        found = await run(self._database, conn, work, (domain, process_id))
        if found is None:
            raise ProcessNotFoundError(domain, process_id)
        if not found.is_ended:
            raise ProcessNotEndedError(domain, process_id, found.status)
        is_new: bool = found.is_new
        return is_new


def _what_ended(
    domain: str, ended_before: datetime, statuses: Collection[ProcessStatus], process_type: str | None
) -> tuple[Listing, dict[str, Any]]:
    """Check the arguments. Return the list of what was created before the time, and what makes a process due in it."""
    end = checked(TIME, "ended_before", ended_before)
    wanted = sorted_statuses(statuses)
    live = [status.value for status in wanted if not status.is_terminal]
    if live:
        raise InvalidInputError("statuses", f"must be terminal, and {', '.join(live)} is not")
    name = None if process_type is None else checked(NAME, "process_type", process_type)
    listing = Listing(ProcessFilter(domain=domain, statuses=wanted, created_before=end))
    return listing, {"ended_before": end, "process_type": name}


def _lost_race(error: DBAPIError | TransactionConflictError) -> str | None:
    """Return the server's code if the batch can be run again; `None` if that cannot help."""
    if isinstance(error, TransactionConflictError):
        return error.sqlstate
    sqlstate = get_sqlstate(error)
    if sqlstate == _FOREIGN_KEY_VIOLATION:
        diagnostic = getattr(error.orig, "diag", None)
        # A host's own foreign key would fail again.
        return sqlstate if getattr(diagnostic, "constraint_name", None) == _retention.STEPS_KEY else None
    return sqlstate if sqlstate in RUN_AGAIN else None


def _next_size(size: int, took: float, most: int) -> int:
    """Return the size of the next batch, so that it takes about as long as wanted. It at most doubles."""
    return max(1, min(most, 2 * size, int(size * _WANTED / max(took, 0.001))))


def _as_time(text: str) -> datetime:
    with suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).astimezone(UTC)
    return datetime.min.replace(tzinfo=UTC)  # before the years that Python knows
