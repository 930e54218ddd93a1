"""Many processes, or many entries, in one unit."""

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

from commandbus_process._arguments import check_loggable, checked_fields, entry_values, found_by
from commandbus_process._json import json_array, json_row
from commandbus_process.errors import InvalidInputError, NothingWrittenError, ProcessAlreadyExistsError, ProcessError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, StateT
from commandbus_process.postgres import _statements
from commandbus_process.postgres._batches import Batch, Prepared, check_iterable, in_batches
from commandbus_process.postgres._copy import copy_rows
from commandbus_process.postgres._reading import Row, Rows, forget_row, set_stored, written_from
from commandbus_process.postgres._refusals import ROUNDS, logging_error, raise_all
from commandbus_process.postgres._transaction import conflicts_told, unit
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit

_Step: TypeAlias = tuple[str, UUID, ProcessAuditEntry]


async def save_many(
    engine: AsyncEngine,
    conn: AsyncConnection | None,
    processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
    state_text: Callable[[ProcessMetadata[StateT]], str],
) -> int:
    """Insert new processes, and return how many."""
    check_iterable("processes", processes, "ProcessMetadata")
    names = _statements.NEW_PROCESS
    by_copy = True

    def prepare(process: ProcessMetadata[StateT]) -> Prepared:
        if not isinstance(process, ProcessMetadata):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise InvalidInputError("process", f"must be a ProcessMetadata, not {type(process).__name__}")
        state = state_text(process)
        row = {**checked_fields(process, names), "state": state}
        return Prepared((process.domain, process.process_id), None, row, len(state))

    def write(connection: Connection, batch: Batch[ProcessMetadata[StateT]]) -> int:
        nonlocal by_copy
        by_copy = by_copy and copy_rows(connection, process_table, names, batch.rows(names))
        if not by_copy:
            _insert_processes(connection, batch)
        _set_all_stored(connection, batch)
        return len(batch.items)

    async with unit(engine, conn) as connection:

        async def send(batch: Batch[ProcessMetadata[StateT]]) -> int:
            with conflicts_told():
                return await greenlet_spawn(write, connection.sync_connection, batch)

        return await in_batches("processes", processes, prepare, send, ahead=conn is None)


def _insert_processes(connection: Connection, batch: Batch[ProcessMetadata[StateT]]) -> None:
    def keys(numbers: Iterable[int]) -> list[tuple[str, UUID]]:
        order = batch.order()
        items = [batch.items[position] for position in sorted(order[number] for number in numbers)]
        return [(item.domain, item.process_id) for item in items]

    missing: list[int] | None = None
    for _ in range(ROUNDS):
        # Whoever deletes the process in the way between two statements makes this go round once more.
        missing = list(connection.execute(_statements.SAVE_MANY, {"processes": batch.as_json(missing)}).scalars())
        if not missing:
            return
        taken = connection.execute(_statements.TAKEN_OF_MANY, {"processes": batch.as_json(missing)}).scalars().all()
        if taken:
            raise_all(ProcessAlreadyExistsError(*key) for key in keys(taken))
    raise NothingWrittenError(*keys(missing or ())[0])


def _set_all_stored(connection: Connection, batch: Batch[ProcessMetadata[StateT]]) -> None:
    """Set on the processes of a batch what the database has set. COPY returns nothing, so it is read back."""
    keys = json_array(
        json_row({"position": position, "domain": each.domain, "process_id": each.process_id}, ())
        for position, each in enumerate(batch.items)
    )
    position: int
    for position, written in connection.execute(_statements.WRITTEN_MANY, {"keys": keys}):
        process = batch.items[position]
        forget_row(process)
        set_stored(process, written_from(written), is_committed=True)


async def log_many(
    engine: AsyncEngine, conn: AsyncConnection | None, steps: Iterable[_Step] | AsyncIterable[_Step]
) -> int:
    """Log entries, and return how many were not there already."""
    check_iterable("steps", steps, "(domain, process id, ProcessAuditEntry)")
    names = _statements.NEW_STEP
    # Until something is in the way. Then these are entries that are being redelivered, and the next ones are too.
    by_copy = True

    def prepare(step: _Step) -> Prepared:
        domain, process_id, entry = _checked_step(step)
        found_by(domain, process_id)
        check_loggable(entry)
        row: dict[str, Any] = {**entry_values(entry, names), "domain": domain, "process_id": process_id}
        size = sum(len(row[name]) for name in _statements.JSON_COLUMNS if row.get(name) is not None)
        return Prepared((domain, process_id), entry.command_id, row, size)

    def write(connection: Connection, batch: Batch[_Step]) -> int:
        nonlocal by_copy
        by_copy = by_copy and copy_rows(connection, process_audit, names, batch.rows(names))
        return len(batch.items) if by_copy else _insert_steps(connection, batch)

    async with unit(engine, conn) as connection:

        async def send(batch: Batch[_Step]) -> int:
            with conflicts_told():
                return await greenlet_spawn(write, connection.sync_connection, batch)

        return await in_batches("steps", steps, prepare, send, ahead=conn is None)


def _checked_step(step: tuple[Any, ...]) -> _Step:
    """Return a step whose shape is right; its key is not checked yet."""
    if not isinstance(step, tuple):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError("entry", f"must be (domain, process id, ProcessAuditEntry), not {type(step).__name__}")
    match step:
        case (domain, process_id, ProcessAuditEntry() as entry):
            return domain, process_id, entry
        case (_, _, other):
            raise InvalidInputError("entry", f"must be a ProcessAuditEntry, not {type(other).__name__}")
        case wrong:
            raise InvalidInputError(
                "entry", f"must be (domain, process id, ProcessAuditEntry), not {len(wrong)} values"
            )


def _insert_steps(connection: Connection, batch: Batch[_Step]) -> int:
    order, steps = batch.order(), {"steps": batch.as_json()}
    written = 0

    def position(row: Row) -> int:
        number: int = row["position"]
        return order[number]

    rows: list[Row] = []
    for _ in range(ROUNDS):
        count: int = connection.execute(_statements.LOG_MANY, steps).rowcount
        written += count
        if written == len(batch.items):
            return written
        rows = sorted(Rows(connection.execute(_statements.LOGGED_MANY, steps)).one_by_one(), key=position)
        raise_all(_error(batch.items[position(row)], row) for row in rows)
        if not rows:
            return written
    domain, process_id, _ = batch.items[position(rows[0])]
    raise NothingWrittenError(domain, process_id)


def _error(step: _Step, row: Row) -> ProcessError | None:
    domain, process_id, entry = step
    return logging_error(domain, process_id, None if row["process_id"] is None else row, entry)
