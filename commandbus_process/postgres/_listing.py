"""Turn a filter into SQL: find the processes that match it, or claim those that nobody else holds."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    String,
    Uuid,
    all_,
    and_,
    any_,
    bindparam,
    literal_column,
    select,
    union_all,
)

from commandbus_process._arguments import checked_filter
from commandbus_process._columns import PROCESS_KEY
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import ProcessStatus
from commandbus_process.postgres._expressions import STAMP, key_parameter, names_equal, selected
from commandbus_process.postgres._reading import Rows
from commandbus_process.tables import process

# The fields of a filter, and the other limits of a list, as SQL. A condition is used if its parameter is given. Domain
# and statuses are not here, because every list has them.
CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "process_type": process.c.process_type == bindparam("process_type", type_=String()),
    "updated_before": process.c.updated_at < bindparam("updated_before", type_=process.c.updated_at.type),
    "known_types": process.c.process_type == any_(bindparam("known_types", type_=ARRAY(String))),
    "seen": process.c.process_id != all_(bindparam("seen", type_=ARRAY(Uuid))),
}
_LIMIT = bindparam("limit", type_=Integer())
_OLDEST_FIRST = (process.c.created_at, process.c.process_id)


class Listing:
    """The conditions and the limit of a list of processes, as parameters.

    Args:
        wanted: The caller's filter.
        known_types: The process types that the repository can read; `None` if it can read all.
        limit: The maximum number of processes; `None`: no limit.

    Attributes:
        parameters: The parameters of the statement.

    Raises:
        InvalidInputError: A value in the filter does not fit.
    """

    def __init__(self, wanted: ProcessFilter, known_types: Collection[str] | None, limit: int | None) -> None:
        given = checked_filter(wanted)
        self._statuses: tuple[str, ...] = given.pop("statuses")
        self.parameters: dict[str, Any] = {"key_domain": given.pop("domain"), **given}
        if known_types is not None and "process_type" not in given:
            self.parameters["known_types"] = sorted(known_types)  # other types belong to another program
        if limit is not None:
            self.parameters["limit"] = limit

    @property
    def is_empty(self) -> bool:
        """Whether no process can match, because there are no statuses."""
        return not self._statuses

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
        return find_by_status(self._statuses, frozenset(self.parameters))

    def claim(self) -> Select[Any]:
        """Return the statement that finds processes that nobody else holds, and locks them."""
        return claim(self._statuses, frozenset(self.parameters))


def _conditions(given: frozenset[str]) -> list[ColumnElement[bool]]:
    unknown = given - CONDITIONS.keys() - {"key_domain", "limit"}
    if unknown:
        raise KeyError(f"{', '.join(sorted(unknown))} has no condition")
    return [condition for name, condition in CONDITIONS.items() if name in given]


def _in_status(statuses: Sequence[str]) -> ColumnElement[bool]:
    """Whether a process is in one of the statuses.

    The statuses are literals in the statement, not parameters, so that the server's plan for a prepared statement knows
    them. If they were parameters, the server would take all statuses for equally frequent. Among many ended processes
    it would then read the whole domain (21 ms for 200 waiting processes among 50,000) instead of the index (0.6 ms).
    """
    literals = [literal_column(f"'{ProcessStatus(status).value}'", process.c.status.type) for status in statuses]
    of_status = process.c.status == literals[0] if len(literals) == 1 else process.c.status.in_(literals)
    return and_(process.c.domain == key_parameter(process.c.domain), of_status)


@cache
def find_by_status(statuses: tuple[str, ...], given: frozenset[str] = frozenset()) -> Select[Any]:
    """Return the statement that finds processes in the statuses, oldest first.

    The rows are sorted in a subquery, and states are turned into text after that. Otherwise PostgreSQL turns them into
    text before it sorts, and has to move the texts while it sorts (3.5 ms instead of 2.0 for a thousand processes).

    Args:
        statuses: The statuses, sorted, so that each set of statuses is one statement.
        given: The names of the parameters that are given.
    """
    inner = select(process, STAMP.label("stamp")).where(_in_status(statuses), *_conditions(given))
    inner = inner.order_by(*_OLDEST_FIRST)
    found = (inner.limit(_LIMIT) if "limit" in given else inner).subquery("found")
    return select(*(selected(column) for column in found.c)).order_by(found.c.created_at, found.c.process_id)


@cache
def claim(statuses: tuple[str, ...], given: frozenset[str] = frozenset()) -> Select[Any]:
    """Return the statement that finds and locks the oldest processes in the statuses that nobody else holds.

    It reads only as many rows as it returns. Each status is read in the order of the index, and several statuses are
    merged, oldest first. A plain IN would read and sort all rows that match (3.7 ms for 3,000 rows, instead of 0.3).

    PostgreSQL cannot lock the rows of a UNION. So they are joined to the process by its key. The row is locked after it
    was read, so the conditions are checked again on the locked row. The arguments are those of `find_by_status`.
    """
    conditions = _conditions(given)
    columns = (*(selected(column) for column in process.c), STAMP.label("stamp"))
    if len(statuses) == 1:
        oldest = select(*columns).where(_in_status(statuses), *conditions).order_by(*_OLDEST_FIRST)
    else:
        candidate = union_all(*(_in_order(each, conditions) for each in statuses)).subquery("candidate")
        oldest = (
            select(*columns)
            .join_from(candidate, process, names_equal(candidate, process, PROCESS_KEY))
            .where(_in_status(statuses), *conditions)
            .order_by(candidate.c.created_at, candidate.c.process_id)
        )
    return oldest.limit(_LIMIT).with_for_update(key_share=True, skip_locked=True, of=process)


def _in_order(status: str, conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    # LIMIT NULL is no limit. The server does not know that when it plans, so it chooses a plan for few rows.
    no_limit = select(literal_column("NULL::bigint", BigInteger())).scalar_subquery()
    return (
        select(*process.primary_key, process.c.created_at)
        .where(_in_status([status]), *conditions)
        .order_by(*_OLDEST_FIRST)
        .limit(no_limit)
    )
