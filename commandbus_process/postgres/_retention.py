"""The statements of the retention: find and lock what has ended, delete it with its steps, preview that, and erase."""

from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    String,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    delete,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.sql.elements import TextClause

from commandbus_process._columns import ERASED, ERASED_ENTRY, PROCESS_KEY
from commandbus_process.models import TERMINAL
from commandbus_process.postgres._expressions import (
    COUNT,
    IS_PROCESS,
    ONE,
    equals_if_given,
    has_given_id,
    names_equal,
)
from commandbus_process.postgres._listing import LIMIT, in_order, in_status, is_one_of, sorted_by
from commandbus_process.postgres._statements import ENTRY_SELECTED
from commandbus_process.tables import process, process_audit

ENDED = tuple(sorted(TERMINAL))

READ_COMMITTED: TextClause = text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

# Rows of other software may have no time of completion. Their last change ended them.
_ENDED_AT = func.coalesce(process.c.completed_at, process.c.updated_at, type_=process.c.updated_at.type)
_IS_DUE = and_(
    bindparam("ended_before", type_=process.c.updated_at.type) > _ENDED_AT,
    equals_if_given(process.c.process_type, "process_type"),
)


@cache
def lock_due(statuses: tuple[str, ...], given: frozenset[str]) -> Select[*tuple[Any, ...]]:
    """Return the statement that looks at the next processes of the list, and locks those that are due.

    It reads a fixed number of rows, due or not, so a batch never reads without end. It returns one row: how many rows
    it has seen, the last of them, and the ids that it has locked. A process that another transaction holds is skipped.
    The row is locked after it was read, so status and end are checked again on the locked row.

    Args:
        statuses: The statuses, sorted, at least one.
        given: The names of the parameters of the list that are given.
    """
    found = in_order(statuses, given, (*process.primary_key, _IS_DUE.label("due")))
    seen = select(found).order_by(*sorted_by(found, "sort_key")).limit(LIMIT).cte("seen").prefix_with("MATERIALIZED")
    held = (
        select(process.c.process_id)
        .join_from(seen, process, names_equal(seen, process, PROCESS_KEY))
        .where(seen.c.due, in_status(statuses), _IS_DUE)
        .with_for_update(skip_locked=True, of=process)
        .cte("held")
        .prefix_with("MATERIALIZED")
    )
    last = select(seen.c.sort_key, seen.c.process_id).order_by(*sorted_by(seen, "sort_key", newest_first=True))
    last_seen = last.limit(ONE).subquery("last_seen")
    return select(
        select(COUNT).select_from(seen).scalar_subquery().label("seen"),
        select(cast(func.pg_catalog.to_json(last_seen.c.sort_key), Text))
        .select_from(last_seen)
        .scalar_subquery()
        .label("last_key"),
        select(last_seen.c.process_id).select_from(last_seen).scalar_subquery().label("last_id"),
        select(func.pg_catalog.array_agg(held.c.process_id, type_=ARRAY(Uuid))).scalar_subquery().label("held"),
    )


@cache
def delete_ended(statuses: tuple[str, ...]) -> Select[*tuple[Any, ...]]:
    """Return the statement that deletes the locked processes and their steps, and returns both numbers.

    Status and end are checked once more, in the same statement. It is not the statement that locks: this one begins
    after the processes are locked, so it sees every step that was logged before. No new one can come in, because
    logging a step locks the process, too.
    """
    due = (
        select(*process.primary_key)
        .where(has_given_id(process), in_status(statuses), _IS_DUE)
        .with_for_update()
        .cte("due")
        .prefix_with("MATERIALIZED")
    )
    steps = (
        delete(process_audit)
        .where(names_equal(process_audit, due, PROCESS_KEY))
        .returning(ONE.label("one"))
        .cte("deleted_steps")
    )
    processes = delete(process).where(names_equal(process, due, PROCESS_KEY)).returning(ONE.label("one")).cte("deleted")
    return select(
        select(COUNT).select_from(processes).scalar_subquery().label("processes"),
        select(COUNT).select_from(steps).scalar_subquery().label("steps"),
    )


TRAILS = (
    select(process_audit.c.process_id, *ENTRY_SELECTED)
    .where(has_given_id(process_audit))
    .order_by(process_audit.c.process_id, process_audit.c.sent_at, process_audit.c.id)
)


def _size(table: Table) -> ColumnElement[int]:
    """Return the size of a row in bytes. Column by column: the size of a whole row would read large values."""
    header = literal_column("28", Integer())  # the row's header, and its pointer in the page
    sizes = (
        func.coalesce(func.pg_catalog.pg_column_size(column), literal_column("0"), type_=Integer())
        for column in table.c
    )
    return sum(sizes, start=header)


@cache
def preview(statuses: tuple[str, ...]) -> Select[*tuple[Any, ...]]:
    """Return the statement that counts what is due, by type and by the month of its end in UTC."""
    steps = (
        select(COUNT.label("steps"), func.pg_catalog.sum(_size(process_audit)).label("bytes"))
        .where(names_equal(process_audit, process, PROCESS_KEY))
        .lateral("trail")
    )
    month = func.coalesce(
        func.pg_catalog.to_char(
            func.pg_catalog.timezone(literal_column("'UTC'"), _ENDED_AT), literal_column("'YYYY-MM'")
        ),
        literal_column("'-infinity'"),
        type_=String(),
    )
    size = func.pg_catalog.sum(_size(process) + func.coalesce(steps.c.bytes, literal_column("0")))
    return (
        select(
            process.c.process_type,
            month.label("month"),
            COUNT.label("processes"),
            cast(func.pg_catalog.sum(steps.c.steps), BigInteger).label("steps"),
            cast(size, BigInteger).label("bytes"),
        )
        .select_from(process.join(steps, literal_column("true")))
        .where(
            in_status(statuses),
            process.c.created_at < bindparam("created_before", type_=process.c.created_at.type),
            _IS_DUE,
        )
        .group_by(literal_column("1"), literal_column("2"))
        .order_by(literal_column("1"), literal_column("2"))
    )


def _emptied(table: Table, erased: tuple[str, ...]) -> dict[str, ColumnElement[Any]]:
    """Return the values that `erase` writes: NULL or, if the column does not allow that, its default."""
    values: dict[str, ColumnElement[Any]] = {}
    for name in erased:
        default: Any = table.c[name].server_default
        values[name] = null() if table.c[name].nullable else literal_column(str(default.arg), table.c[name].type)
    return values


def _differs(table: Table, values: dict[str, ColumnElement[Any]]) -> ColumnElement[bool]:
    return or_(
        false(),
        *(
            table.c[name].is_not(None) if table.c[name].nullable else table.c[name] != value
            for name, value in values.items()
        ),
    )


def _erase() -> Select[*tuple[Any, ...]]:
    of_process, of_entry = _emptied(process, ERASED), _emptied(process_audit, ERASED_ENTRY)
    held = select(*process.primary_key, process.c.status).where(IS_PROCESS).with_for_update(key_share=True).cte("held")
    is_ended = is_one_of(held.c.status, ENDED)
    payloads = (
        update(process_audit)
        .where(names_equal(process_audit, held, PROCESS_KEY), is_ended, _differs(process_audit, of_entry))
        .values(of_entry)
        .returning(ONE.label("one"))
        .cte("payloads")
    )
    # The version goes up: an object that was read before can no longer write its state back.
    erased = (
        update(process)
        .where(names_equal(process, held, PROCESS_KEY), is_ended, _differs(process, of_process))
        .values({**of_process, "version": process.c.version + ONE})
        .returning(ONE.label("one"))
        .cte("erased")
    )
    return select(
        held.c.status,
        is_ended.label("is_ended"),
        or_(select(payloads).exists(), select(erased).exists()).label("is_new"),
    )


ERASE = _erase()
"""Empties an ended process and its steps. No row: there is no such process."""

STEPS_KEY = next(iter(process_audit.foreign_key_constraints)).name
"""The foreign key of the steps, which fails if a process is deleted and a step of it is left."""
