"""Many processes, or many entries, in one unit."""

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import Connection, Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

from commandbus_process import _statements
from commandbus_process._batches import Batch, Prepared, in_batches
from commandbus_process._conflicts import ROUNDS, logging_error, raise_all
from commandbus_process._copy import copy_rows
from commandbus_process._input import check_loggable, checked_fields, entry_values, found_by
from commandbus_process._json import json_array, json_row
from commandbus_process._rows import Row, Rows, forget_row, set_stored, written_from
from commandbus_process._transaction import conflicts_told, unit
from commandbus_process.errors import NothingWrittenError, ProcessAlreadyExistsError, ProcessError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, StateT
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit

ItemT = TypeVar("ItemT")


async def save_many(
    engine: AsyncEngine,
    conn: AsyncConnection | None,
    processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
    state_text: Callable[[ProcessMetadata[StateT]], str],
) -> int:
    """Insert new processes, and return how many."""

    def prepare(process: ProcessMetadata[StateT]) -> Prepared:
        state = state_text(process)
        row = {**checked_fields(process, _statements.NEW_PROCESS), "state": state}
        return Prepared((process.domain, process.process_id), row, len(state))

    def write(connection: Connection, batch: Batch[ProcessMetadata[StateT]]) -> int:
        if not copy_rows(connection, process_table, _statements.NEW_PROCESS, batch.rows(_statements.NEW_PROCESS)):
            positions = _positions(connection, _statements.SAVE_MANY, processes=batch.as_json())
            taken = [batch.items[position] for position in positions]
            raise_all([ProcessAlreadyExistsError(process.domain, process.process_id) for process in taken])
        note_stored(connection, batch)
        return len(batch.items)

    def note_stored(connection: Connection, batch: Batch[ProcessMetadata[StateT]]) -> None:
        """Read what the database has set: COPY returns nothing."""
        keys = json_array(
            json_row({"position": position, "domain": each.domain, "process_id": each.process_id}, ())
            for position, each in enumerate(batch.items)
        )
        for position, written in connection.execute(_statements.WRITTEN_MANY, {"keys": keys}):
            forget_row(batch.items[position])
            set_stored(batch.items[position], written_from(written), is_committed=True)

    async with unit(engine, conn) as connection:

        async def send(batch: Batch[ProcessMetadata[StateT]]) -> int:
            with conflicts_told():
                return await greenlet_spawn(write, connection.sync_connection, batch)

        return await in_batches("processes", processes, prepare, send, ahead=conn is None)


async def log_many(
    engine: AsyncEngine,
    conn: AsyncConnection | None,
    what: str,
    items: Iterable[ItemT] | AsyncIterable[ItemT],
    step_of: Callable[[ItemT], tuple[str, UUID, ProcessAuditEntry]],
) -> int:
    """Log entries, and return how many were not there already."""
    # Until something is in the way. Then these are entries that are being redelivered, and the next ones are too.
    are_new = True

    def prepare(item: ItemT) -> Prepared:
        domain, process_id, entry = step_of(item)
        found_by(domain, process_id)
        check_loggable(entry)
        row: dict[str, Any] = {**entry_values(entry, _statements.NEW_STEP), "domain": domain, "process_id": process_id}
        size = sum(len(row[name]) for name in _statements.JSON_COLUMNS if row.get(name) is not None)
        return Prepared((domain, process_id, entry.command_id), row, size)

    def write(connection: Connection, batch: Batch[ItemT]) -> int:
        nonlocal are_new
        names = _statements.NEW_STEP
        are_new = are_new and copy_rows(connection, process_audit, names, batch.rows(names))
        return len(batch.items) if are_new else log_new_ones(connection, batch)

    def log_new_ones(connection: Connection, batch: Batch[ItemT]) -> int:
        steps = batch.as_json()
        there_before = set(range(len(batch.items)))
        for _ in range(ROUNDS):
            there_before &= set(_positions(connection, _statements.LOG_MANY, steps=steps))
            if not there_before or not was_in_the_way(connection, batch, steps):
                return len(batch.items) - len(there_before)
        domain, process_id, _ = step_of(batch.items[0])
        raise NothingWrittenError(domain, process_id)

    def was_in_the_way(connection: Connection, batch: Batch[ItemT], steps: str) -> bool:
        """Raise what is in the way, or return whether something was and has gone."""
        rows = Rows(connection.execute(_statements.LOGGED_MANY, {"steps": steps})).one_by_one()
        errors = [_error(step_of(batch.items[cast("int", row["position"])]), row) for row in rows]
        raise_all([error for error in errors if error is not None])
        return bool(rows)

    async with unit(engine, conn) as connection:

        async def send(batch: Batch[ItemT]) -> int:
            with conflicts_told():
                return await greenlet_spawn(write, connection.sync_connection, batch)

        return await in_batches(what, items, prepare, send, ahead=conn is None)


def _error(step: tuple[str, UUID, ProcessAuditEntry], row: Row) -> ProcessError | None:
    domain, process_id, entry = step
    return logging_error(domain, process_id, None if row["process_id"] is None else row, entry)


def _positions(connection: Connection, statement: Select[Any], **values: str) -> list[int]:
    return list(connection.execute(statement, values).scalars())
