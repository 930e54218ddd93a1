"""Save many processes or log many entries, all or none: the statements, and why an item was not written."""

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Select, exists, false, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import greenlet_spawn

from commandbus_process._batches import Batch, Prepared, Step, check_iterable, in_batches, prepare_process, prepare_step
from commandbus_process._checked_rows import Row
from commandbus_process._columns import COMMAND_KEY, LOGGED, PROCESS_KEY, SAVED
from commandbus_process._parameters import json_rows
from commandbus_process._refusals import raise_with_others, why_not_logged, write_or_explain
from commandbus_process._stamps import forget_row, set_stored, written_from
from commandbus_process.errors import ProcessAlreadyExistsError, ProcessError
from commandbus_process.models import ProcessMetadata, StateT
from commandbus_process.postgres._copy import copy_rows
from commandbus_process.postgres._database import Database, Tables
from commandbus_process.postgres._expressions import COUNT, ONE, STAMP, names_equal, rows_parameter
from commandbus_process.postgres._reading import Rows
from commandbus_process.postgres._statements import ENTRY_SELECTED, is_same_entry
from commandbus_process.postgres._transaction import atomic, translated_errors
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit


def _save_many() -> Select[Any]:
    # The rows are read twice. PostgreSQL computes a WITH query that is used twice only once.
    rows = rows_parameter(process_table, SAVED, "processes")
    given = select(*rows.c).cte("given")
    saved = (
        insert(process_table)
        .from_select(SAVED, select(*(given.c[name] for name in SAVED)).order_by(given.c.position))
        .on_conflict_do_nothing(index_elements=PROCESS_KEY)
        .returning(*process_table.primary_key)
        .cte("saved")
    )
    missing = ~exists(select(ONE).select_from(saved).where(names_equal(saved, given, PROCESS_KEY)))
    return select(given.c.position).where(missing).order_by(given.c.position)


def _why_not_all_saved() -> Select[Any]:
    given = rows_parameter(process_table, PROCESS_KEY, "processes")
    return select(given.c.position).join_from(given, process_table, names_equal(process_table, given, PROCESS_KEY))


def _written_many() -> Select[Any, str]:
    given = rows_parameter(process_table, PROCESS_KEY, "keys")
    return select(given.c.position, STAMP.label("written")).join_from(
        given, process_table, names_equal(process_table, given, PROCESS_KEY)
    )


def _log_many() -> Select[Any]:
    given = rows_parameter(process_audit, LOGGED, "steps")
    # The lock is in a WITH query for the same reason as that of LOG_STEP, and so are the rows that are counted.
    held = (
        select(given.c.position, *(given.c[name] for name in LOGGED))
        .join_from(given, process_table, names_equal(process_table, given, PROCESS_KEY))
        .order_by(given.c.position)
        .with_for_update(read=True, key_share=True, of=process_table)
        .cte("held")
    )
    logged = (
        insert(process_audit)
        .from_select(
            LOGGED,
            # The order of the ids, which decides between entries of the same time.
            select(*(held.c[name] for name in LOGGED)).order_by(held.c.position),
        )
        .on_conflict_do_nothing(index_elements=COMMAND_KEY)
        .returning(ONE)
        .cte("logged")
    )
    return select(COUNT).select_from(logged)


def _why_not_all_logged() -> Select[Any]:
    given = rows_parameter(process_audit, LOGGED, "steps")
    return (
        select(given.c.position, process_table.c.process_id.label("process_id"), *ENTRY_SELECTED)
        .select_from(
            given.outerjoin(process_table, names_equal(process_table, given, PROCESS_KEY)).outerjoin(
                process_audit, names_equal(process_audit, given, COMMAND_KEY)
            )
        )
        .where(func.coalesce(is_same_entry(given), false()).is_(false()))
    )


# The rows are written in the order of their positions. ON CONFLICT names the library's own key. A conflict with another
# unique index, for example one of the host application, is an error of the server.
#
# SAVE_MANY returns the positions of the rows that were not written. WHY_NOT_ALL_SAVED returns the positions of the rows
# whose key is in the table.
SAVE_MANY = _save_many()
WHY_NOT_ALL_SAVED = _why_not_all_saved()
WRITTEN_MANY = _written_many()
# Returns the number of written rows. Returning which rows were written would cost a fifth more: 31 instead of 27
# microseconds a row.
LOG_MANY = _log_many()
# Returns the rows that are not stored as they were given. If `process_id` is NULL, the process does not exist. If
# `command_id` is NULL, no entry is logged (any more). Otherwise the row has the entry that is logged.
WHY_NOT_ALL_LOGGED = _why_not_all_logged()


async def save_many(
    database: Database,
    conn: AsyncConnection | None,
    processes: Iterable[ProcessMetadata[StateT]] | AsyncIterable[ProcessMetadata[StateT]],
    state_columns: Callable[[ProcessMetadata[StateT]], Mapping[str, Any]],
) -> int:
    """Insert new processes, and return how many were inserted."""
    check_iterable("processes", processes, "ProcessMetadata")
    by_copy = True

    def prepare(process: ProcessMetadata[StateT]) -> Prepared:
        return prepare_process(process, state_columns)

    def write(tables: Tables, batch: Batch[ProcessMetadata[StateT]]) -> int:
        nonlocal by_copy
        by_copy = by_copy and copy_rows(tables, process_table, SAVED, batch.rows(SAVED))
        if not by_copy:
            _insert_processes(tables, batch)
        _set_all_stored(tables, batch)
        return len(batch.items)

    async with atomic(database, conn) as connection:
        tables = database.on_async(connection)

        async def send(batch: Batch[ProcessMetadata[StateT]]) -> int:
            with translated_errors():
                return await greenlet_spawn(write, tables, batch)

        return await in_batches("processes", processes, prepare, send, ahead=conn is None)


def _insert_processes(tables: Tables, batch: Batch[ProcessMetadata[StateT]]) -> None:
    missing: list[int] | None = None

    def keys(numbers: Iterable[int]) -> list[tuple[str, UUID]]:
        order = batch.order()
        items = [batch.items[position] for position in sorted(order[number] for number in numbers)]
        return [(item.domain, item.process_id) for item in items]

    def write() -> bool | None:
        # Somebody may delete the conflicting process before `explain` runs. Then only the missing ones are written.
        nonlocal missing
        missing = list(tables.execute(SAVE_MANY, {"processes": batch.as_json(missing)}).scalars())
        return None if missing else True

    def explain() -> None:
        taken = tables.execute(WHY_NOT_ALL_SAVED, {"processes": batch.as_json(missing)}).scalars().all()
        raise_with_others(ProcessAlreadyExistsError(*key) for key in keys(taken))

    write_or_explain(write, explain, lambda: keys(missing or ())[0])


def _set_all_stored(tables: Tables, batch: Batch[ProcessMetadata[StateT]]) -> None:
    """Set on the processes of a batch what the database has set. It is read back, since COPY returns nothing."""
    keys = json_rows(
        {position: {"domain": each.domain, "process_id": each.process_id} for position, each in enumerate(batch.items)}
    )
    position: int
    for position, written in tables.execute(WRITTEN_MANY, {"keys": keys}):
        process = batch.items[position]
        forget_row(process)
        set_stored(process, written_from(written), is_committed=True)


async def log_many(
    database: Database, conn: AsyncConnection | None, steps: Iterable[Step] | AsyncIterable[Step]
) -> int:
    """Log entries, and return how many were new."""
    check_iterable("steps", steps, "(domain, process id, ProcessAuditEntry)")
    # Until the first conflict. Then these entries are probably being redelivered, and so are the next ones.
    by_copy = True

    def write(tables: Tables, batch: Batch[Step]) -> int:
        nonlocal by_copy
        by_copy = by_copy and copy_rows(tables, process_audit, LOGGED, batch.rows(LOGGED))
        return len(batch.items) if by_copy else _insert_steps(tables, batch)

    async with atomic(database, conn) as connection:
        tables = database.on_async(connection)

        async def send(batch: Batch[Step]) -> int:
            with translated_errors():
                return await greenlet_spawn(write, tables, batch)

        return await in_batches("steps", steps, prepare_step, send, ahead=conn is None)


def _insert_steps(tables: Tables, batch: Batch[Step]) -> int:
    order, steps = batch.order(), {"steps": batch.as_json()}
    written = 0
    rows: list[Row] = []

    def position(row: Row) -> int:
        number: int = row["position"]
        return order[number]

    def write() -> int | None:
        nonlocal written
        written += tables.execute(LOG_MANY, steps).scalar_one()
        return written if written == len(batch.items) else None

    def explain() -> int | None:
        nonlocal rows
        rows = sorted(Rows.all(tables.execute(WHY_NOT_ALL_LOGGED, steps)).one_by_one(), key=position)
        raise_with_others(_why_not_logged(batch.items[position(row)], row) for row in rows)
        return None if rows else written

    return write_or_explain(write, explain, lambda: batch.items[position(rows[0])][:2])


def _why_not_logged(step: Step, row: Row) -> ProcessError | None:
    domain, process_id, entry = step
    return why_not_logged(domain, process_id, None if row["process_id"] is None else row, entry)
