"""Pages of a list, and the number of processes in it. A page goes on after a row, never by an offset."""

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Subquery, Text, and_, cast, func, literal_column, select

from commandbus_process._columns import PROCESS_KEY, READ
from commandbus_process.postgres._expressions import COUNT, PROCESS_ROW, names_equal, selected
from commandbus_process.postgres._listing import LIMIT, in_order, sorted_by
from commandbus_process.postgres._reading import Rows, unquoted
from commandbus_process.tables import STATE_VERSION, process, process_audit

SUMMARY = tuple(name for name in READ if name not in {"state", STATE_VERSION})
"""The columns of a summary. The state is not read, so a large one costs nothing."""


@cache
def summaries(statuses: tuple[str, ...], given: frozenset[str], *, newest_first: bool, steps: bool) -> Select[Any]:
    """Return the statement that reads one page of summaries.

    Args:
        statuses: The statuses, sorted, at least one.
        given: The names of the parameters that are given.
        newest_first: Whether the order is reversed.
        steps: Whether to look into the trails, too. That happens after the limit, so only for the rows of the page.
    """
    found = in_order(statuses, given, [process.c[name] for name in SUMMARY], newest_first=newest_first)
    page = _page(found, newest_first=newest_first)
    columns: list[ColumnElement[Any]] = [selected(column) for column in page.c]
    if steps:
        columns += [_open_commands(page).label("open_commands"), _in_step_since(page).label("in_step_since")]
    return select(*columns).order_by(*sorted_by(page, "sort_key", newest_first=newest_first))


def _open_commands(page: Subquery) -> ColumnElement[int]:
    of_process = names_equal(process_audit, page, PROCESS_KEY)
    return (
        select(COUNT)
        .select_from(process_audit)
        .where(of_process, process_audit.c.reply_outcome.is_(None))
        .correlate(page)
        .scalar_subquery()
    )


def _in_step_since(page: Subquery) -> ColumnElement[str]:
    # A process can come back to a step. So only what was logged after the last entry of another step counts.
    other = process_audit.alias("other")
    before = (
        select(func.coalesce(func.pg_catalog.max(other.c.id), literal_column("0", BigInteger())))
        .where(names_equal(other, page, PROCESS_KEY), other.c.step_name != page.c.current_step)
        .correlate(page)
    )
    in_step = and_(
        names_equal(process_audit, page, PROCESS_KEY),
        process_audit.c.step_name == page.c.current_step,
        process_audit.c.id > before.scalar_subquery(),
    )
    since = cast(func.pg_catalog.to_json(func.pg_catalog.min(process_audit.c.sent_at)), Text)
    return select(since).where(in_step).correlate(page).scalar_subquery()


@cache
def processes(statuses: tuple[str, ...], given: frozenset[str], *, newest_first: bool) -> Select[Any]:
    """Return the statement that reads processes with their states, in the order of the list.

    Without a limit, it reads all of them, for a cursor in the server.
    """
    rows = in_order(statuses, given, PROCESS_ROW, newest_first=newest_first)
    if "limit" in given:
        rows = _page(rows, newest_first=newest_first)  # states are turned into text after the limit
    order = sorted_by(rows, "sort_key", newest_first=newest_first)
    return select(*(selected(column) for column in rows.c)).order_by(*order)


def _page(found: Subquery, *, newest_first: bool) -> Subquery:
    order = sorted_by(found, "sort_key", newest_first=newest_first)
    return select(found).order_by(*order).limit(LIMIT).subquery("page")


def last_row(rows: Rows) -> dict[str, Any]:
    """Return the parameters that make a list go on after these rows."""
    return {"after_key": unquoted(rows.columns["sort_key"][-1]), "after_id": rows.columns["process_id"][-1]}


@cache
def count(statuses: tuple[str, ...], given: frozenset[str]) -> Select[Any]:
    """Return the statement that counts the processes, up to a limit."""
    found = in_order(statuses, given, ())
    return select(COUNT).select_from(select(found).limit(LIMIT).subquery("counted"))
