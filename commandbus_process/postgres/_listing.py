"""Turn a filter into SQL: find the processes that match it, or claim those that nobody else holds."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    String,
    Subquery,
    Text,
    Tuple,
    Uuid,
    all_,
    and_,
    any_,
    bindparam,
    cast,
    literal_column,
    select,
    tuple_,
    union_all,
)

from commandbus_process._arguments import checked_filter, only_known_types
from commandbus_process._columns import PROCESS_KEY
from commandbus_process.errors import UnindexedFilterError
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import ProcessStatus
from commandbus_process.postgres._expressions import PROCESS_ROW, PROCESS_SELECTED, key_parameter, names_equal, selected
from commandbus_process.postgres._reading import Rows
from commandbus_process.tables import process

# The fields of a filter, and the other limits of a list, as SQL. A condition is used if its parameter is given. Domain
# and statuses are not here, because every list has them.
CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "process_type": process.c.process_type == bindparam("process_type", type_=String()),
    "current_step": process.c.current_step == bindparam("current_step", type_=String()),
    "business_key": process.c.business_key == bindparam("business_key", type_=String()),
    "created_after": process.c.created_at >= bindparam("created_after", type_=process.c.created_at.type),
    "created_before": process.c.created_at < bindparam("created_before", type_=process.c.created_at.type),
    "updated_before": process.c.updated_at < bindparam("updated_before", type_=process.c.updated_at.type),
    "deadline_before": process.c.deadline < bindparam("deadline_before", type_=process.c.deadline.type),
    "known_types": process.c.process_type == any_(bindparam("known_types", type_=ARRAY(String))),
    "seen": process.c.process_id != all_(bindparam("seen", type_=ARRAY(Uuid))),
}
LIMIT = bindparam("limit", type_=Integer())

NOT_ENDED = tuple(sorted(status.value for status in ProcessStatus if not status.is_terminal))
"""The statuses that no index has to limit any further, because few processes have them at a time."""

# The conditions that no index serves: the rows that they leave out are read, too. The others limit what is read.
_LEAVE_OUT = ("process_type", "current_step", "updated_before")
_LIMIT_WHAT_IS_READ = ("business_key", "deadline_before", "created_after")

# Parameters of a list that are no conditions, or depend on its order.
_NO_CONDITIONS = {"key_domain", "limit", "after_key", "after_id", "after_command", "sent_before"}


class Listing:
    """The conditions and the limit of a list of processes, as parameters.

    Args:
        wanted: The caller's filter.
        known_types: The process types that the repository can read; `None` if it can read all.
        limit: The maximum number of processes; `None`: no limit.

    Attributes:
        statuses: The statuses, sorted.
        parameters: The parameters of the statement.

    Raises:
        InvalidInputError: A value in the filter does not fit.
    """

    def __init__(
        self, wanted: ProcessFilter, known_types: Collection[str] | None = None, limit: int | None = None
    ) -> None:
        given = checked_filter(wanted)
        self.statuses: tuple[str, ...] = given.pop("statuses")
        self.parameters: dict[str, Any] = {"key_domain": given.pop("domain"), **given}
        self.only_types(known_types)
        if limit is not None:
            self.parameters["limit"] = limit

    def only_types(self, known: Collection[str] | None) -> None:
        """Limit the list to the types that can be read; `None`: all can. Other types belong to another program.

        Raises:
            InvalidInputError: The filter's type is not one of them.
        """
        types = only_known_types(self.parameters.get("process_type"), known)
        if types is not None:
            self.parameters["known_types"] = types

    @property
    def is_empty(self) -> bool:
        """Whether no process can match, because there are no statuses."""
        return not self.statuses

    @property
    def given(self) -> frozenset[str]:
        """The names of the parameters that are given."""
        return frozenset(self.parameters)

    def check_indexed(self, *, reads_trails: bool = False) -> None:
        """Reject a filter that no index serves, because it would read rows without end and leave most of them out.

        An index serves a business key, a deadline, a range of creation times, and every filter that looks only at
        processes that have not ended: those are few.

        Args:
            reads_trails: Whether the trails of all processes in the list are read, not only a page of it.

        Raises:
            UnindexedFilterError: No index serves the filter.
        """
        unserved = ("trails",) if reads_trails else tuple(name for name in _LEAVE_OUT if name in self.parameters)
        is_limited = any(name in self.parameters for name in _LIMIT_WHAT_IS_READ)
        if unserved and not is_limited and not set(self.statuses).issubset(NOT_ENDED):
            raise UnindexedFilterError(unserved)

    def look_further(self, rows: Rows, read: int) -> bool:
        """Whether to look for more rows, because some of the found rows could not be read.

        If so, this sets the parameters for the next statement, which finds the rows after these.

        Args:
            rows: What was found.
            read: How many of the rows could be read.
        """
        limit: int | None = self.parameters.get("limit")
        if limit is None or rows.count < limit:
            return False
        seen = [*self.parameters.get("seen", ()), *rows.columns["process_id"]]
        self.parameters |= {"limit": limit - read, "seen": seen}
        return True

    def find_by_status(self) -> Select[Any]:
        """Return the statement that finds the processes."""
        return find_by_status(self.statuses, self.given)

    def claim(self) -> Select[Any]:
        """Return the statement that finds processes that nobody else holds, and locks them."""
        return claim(self.statuses, self.given)


def conditions(given: frozenset[str]) -> list[ColumnElement[bool]]:
    """Return the conditions whose parameters are given."""
    unknown = given - CONDITIONS.keys() - _NO_CONDITIONS
    if unknown:
        raise KeyError(f"{', '.join(sorted(unknown))} has no condition")
    return [condition for name, condition in CONDITIONS.items() if name in given]


def is_one_of(status: ColumnElement[str], statuses: Collection[str]) -> ColumnElement[bool]:
    """Whether a status is one of these.

    The statuses are literals in the statement, not parameters, so that the server's plan for a prepared statement knows
    them. If they were parameters, the server would take all statuses for equally frequent. Among many ended processes
    it would then read the whole domain (21 ms for 200 waiting processes among 50,000) instead of the index (0.6 ms).
    """
    literals = [literal_column(f"'{ProcessStatus(each).value}'", process.c.status.type) for each in statuses]
    return status == literals[0] if len(literals) == 1 else status.in_(literals)


def in_status(statuses: Collection[str]) -> ColumnElement[bool]:
    """Whether a process of the domain is in one of the statuses."""
    return and_(process.c.domain == key_parameter(process.c.domain), is_one_of(process.c.status, statuses))


def sort_column(given: frozenset[str]) -> Column[Any]:
    """Return the column by which a list is sorted, before the id."""
    return process.c.deadline if "deadline_before" in given else process.c.created_at


def sorted_by(rows: FromClause, key: str, *, newest_first: bool = False) -> list[ColumnElement[Any]]:
    """Return the order of a list: by the column of this name, then by the id. So no two processes are equal in it."""
    columns = (rows.c[key], rows.c.process_id)
    return [column.desc() if newest_first else column for column in columns]


def last_seen(key: Column[Any], **ids: Column[Any]) -> Tuple:
    """Return the last row that was seen, to compare with the rows of a list.

    Args:
        key: The time that sorts the list. Its parameter is a text, as the database has written it.
        ids: The ids that sort rows with the same time, by the names of their parameters.
    """
    time = cast(bindparam("after_key", type_=Text()), key.type)
    return tuple_(time, *(bindparam(name, type_=column.type) for name, column in ids.items()))


def in_order(
    statuses: Sequence[str],
    given: frozenset[str],
    columns: Iterable[ColumnElement[Any]],
    *,
    newest_first: bool = False,
) -> Subquery:
    """Return the rows that match, from which the server reads only as many as it needs, in the order of the list.

    Each status is read in the order of an index, and several statuses are merged. A plain IN would read and sort all
    rows that match (3.7 ms for 3,000 rows, instead of 0.3). Few rows have the same business key, so those are read by
    its index and sorted.

    Args:
        statuses: The statuses, at least one.
        given: The names of the parameters that are given. `after_key` and `after_id` are the last row that was seen.
            With `limit`, no more rows of a status are returned.
        columns: What to select. The column that sorts the rows is added as `sort_key`.
        newest_first: Whether the order is reversed.
    """
    key = sort_column(given)
    of_list = conditions(given)
    if "after_id" in given:
        row, last = tuple_(key, process.c.process_id), last_seen(key, after_id=process.c.process_id)
        of_list.append(row < last if newest_first else row > last)
    found = select(*columns, key.label("sort_key"))
    if "business_key" in given:
        # Without OFFSET, the server may read the whole index of statuses, because it is in the wanted order.
        return found.where(in_status(statuses), *of_list).offset(literal_column("0")).subquery("found")
    # LIMIT NULL is no limit. The server does not know that when it plans, so it chooses a plan for few rows. It plans a
    # limit that is a parameter in the same way. Citus takes only the latter across shards.
    no_limit = select(literal_column("NULL::bigint", BigInteger())).scalar_subquery()
    limit = LIMIT if "limit" in given else no_limit
    order = sorted_by(process, key.name, newest_first=newest_first)
    return union_all(
        *(found.where(in_status([status]), *of_list).order_by(*order).limit(limit) for status in statuses)
    ).subquery("found")


@cache
def find_by_status(statuses: tuple[str, ...], given: frozenset[str] = frozenset()) -> Select[Any]:
    """Return the statement that finds processes in the statuses, oldest first.

    The rows are sorted in a subquery, and states are turned into text after that. Otherwise PostgreSQL turns them into
    text before it sorts, and has to move the texts while it sorts (3.5 ms instead of 2.0 for a thousand processes).

    Args:
        statuses: The statuses, sorted, so that each set of statuses is one statement.
        given: The names of the parameters that are given.
    """
    inner = (
        select(*PROCESS_ROW).where(in_status(statuses), *conditions(given)).order_by(*sorted_by(process, "created_at"))
    )
    found = (inner.limit(LIMIT) if "limit" in given else inner).subquery("found")
    return select(*(selected(column) for column in found.c)).order_by(*sorted_by(found, "created_at"))


@cache
def claim(statuses: tuple[str, ...], given: frozenset[str] = frozenset()) -> Select[Any]:
    """Return the statement that finds and locks processes in the statuses that nobody else holds.

    They are the oldest or, with `deadline_before`, those with the earliest deadlines. It reads only as many rows as it
    returns, and those that the conditions leave out.

    PostgreSQL cannot lock the rows of a UNION. So they are joined to the process by its key. The row is locked after it
    was read, so the conditions are checked again on the locked row. The arguments are those of `find_by_status`.
    """
    if len(statuses) == 1 and "business_key" not in given:
        claimed = select(*PROCESS_SELECTED).order_by(*sorted_by(process, sort_column(given).name))
    else:
        # Without a limit for each status: it would count the processes that somebody else holds, too.
        found = in_order(statuses, given - {"limit"}, process.primary_key)
        claimed = select(*PROCESS_SELECTED).join_from(found, process, names_equal(found, process, PROCESS_KEY))
        claimed = claimed.order_by(*sorted_by(found, "sort_key"))
    claimed = claimed.where(in_status(statuses), *conditions(given)).limit(LIMIT)
    return claimed.with_for_update(key_share=True, skip_locked=True, of=process)
