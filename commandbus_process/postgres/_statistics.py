"""The statements that count the backlog, measure steps, and find the commands that have no reply."""

from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    Select,
    String,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import array

from commandbus_process._columns import PROCESS_KEY
from commandbus_process.models import ReplyOutcome
from commandbus_process.postgres._expressions import COUNT, names_equal, selected
from commandbus_process.postgres._listing import LIMIT, NOT_ENDED, conditions, in_status, last_seen
from commandbus_process.tables import process, process_audit

PERCENTILES = (0.5, 0.95, 0.99)
OPEN_COMMAND = ("step_name", "command_id", "command_type", "sent_at")
"""The columns of an entry that an open command shows."""

_TRAIL_OF_PROCESS = names_equal(process_audit, process, PROCESS_KEY)
_OPEN = process_audit.c.reply_outcome.is_(None)


@cache
def backlog(given: frozenset[str]) -> Select[Any]:
    """Return the statement that counts the processes that have not ended, by type, status and step."""
    groups: list[ColumnElement[Any]] = [process.c.process_type, process.c.status, process.c.current_step]
    oldest = cast(func.pg_catalog.to_json(func.pg_catalog.min(process.c.created_at)), Text)
    overdue = COUNT.filter(process.c.deadline < func.pg_catalog.now())
    return (
        select(*groups, COUNT.label("processes"), oldest.label("oldest"), overdue.label("overdue"))
        .where(in_status(NOT_ENDED), *conditions(given))
        .group_by(*groups)
    )


@cache
def step_statistics(statuses: tuple[str, ...], given: frozenset[str]) -> Select[Any]:
    """Return the statement that counts the steps of the processes by their names, and measures how long they took."""
    # Not the difference of two times: if one of them is infinite, the server raises an error.
    seconds = _epoch(process_audit.c.received_at) - _epoch(process_audit.c.sent_at)
    is_finite = and_(
        *(func.pg_catalog.isfinite(each) for each in (process_audit.c.received_at, process_audit.c.sent_at))
    )
    quantiles = array([literal_column(str(each), Float()) for each in PERCENTILES])
    return (
        select(
            process_audit.c.step_name,
            COUNT.label("commands"),
            *(COUNT.filter(_ended_as(outcome)).label(outcome.name.lower()) for outcome in ReplyOutcome),
            COUNT.filter(_OPEN).label("open"),
            func.pg_catalog.percentile_cont(quantiles).within_group(seconds).filter(is_finite).label("seconds"),
        )
        .join_from(process, process_audit, _TRAIL_OF_PROCESS)
        .where(in_status(statuses), *conditions(given))
        .group_by(process_audit.c.step_name)
    )


def _epoch(time: ColumnElement[Any]) -> ColumnElement[float]:
    return func.pg_catalog.date_part(literal_column("'epoch'"), time, type_=Float())


def _ended_as(outcome: ReplyOutcome) -> ColumnElement[bool]:
    return process_audit.c.reply_outcome == literal_column(f"'{outcome.value}'", String())


@cache
def open_steps(statuses: tuple[str, ...], given: frozenset[str], *, before: bool) -> Select[Any]:
    """Return the statement that finds commands without a reply, the one that was sent first at the front.

    No index finds them: an index over what has no reply would make each reply write every index of the table anew. So
    the trails of the processes are read, and these are few.

    Args:
        statuses: The statuses of the processes.
        given: The names of the parameters that are given. `after_key`, `after_id` and `after_command` are the last row.
        before: Whether `sent_before` is given.
    """
    row = (process_audit.c.sent_at, process_audit.c.process_id, process_audit.c.command_id)
    wanted: list[ColumnElement[bool]] = [_OPEN]
    if before:
        wanted.append(process_audit.c.sent_at < bindparam("sent_before", type_=process_audit.c.sent_at.type))
    if "after_id" in given:
        sent_at, process_id, command_id = row
        wanted.append(tuple_(*row) > last_seen(sent_at, after_id=process_id, after_command=command_id))
    columns = (process.c.domain, process.c.process_id, process.c.process_type, process.c.business_key)
    return (
        select(*columns, *(selected(process_audit.c[name]) for name in OPEN_COMMAND))
        .join_from(process, process_audit, _TRAIL_OF_PROCESS)
        .where(in_status(statuses), *conditions(given), and_(*wanted))
        .order_by(*row)
        .limit(LIMIT)
    )
