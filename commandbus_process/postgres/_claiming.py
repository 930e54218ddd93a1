"""Claim processes by their version: read candidates without a lock, and take those that nobody has changed since."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any, Generic

from sqlalchemy import Select, Text, bindparam, func, select, update

from commandbus_process._columns import PROCESS_KEY
from commandbus_process._parameters import process_key
from commandbus_process._stamps import Written, set_stored
from commandbus_process.errors import StoredDataError
from commandbus_process.models import ProcessMetadata, StateT
from commandbus_process.postgres._database import Tables
from commandbus_process.postgres._expressions import IS_PROCESS, ONE, PROCESS_ROW, STAMP, names_equal, selected
from commandbus_process.postgres._listing import LIMIT, Listing, in_order, sorted_by
from commandbus_process.postgres._reading import ProcessReader, Rows, read_written
from commandbus_process.postgres._transaction import check_can_lock
from commandbus_process.tables import process


@cache
def candidates(statuses: tuple[str, ...], given: frozenset[str]) -> Select[Any]:
    """Return the statement that reads processes that could be claimed, in the order of the list. It takes no lock.

    It reads no more rows than it returns, and those that the conditions leave out.

    Args:
        statuses: The statuses, sorted, at least one.
        given: The names of the parameters that are given.
    """
    found = in_order(statuses, given | {"limit"}, PROCESS_ROW)
    order = sorted_by(found, "sort_key")
    first = select(found).order_by(*order).limit(LIMIT).subquery("first")  # states are turned into text after the limit
    columns = (selected(column) for column in first.c if column.name != "sort_key")
    return select(*columns).order_by(*sorted_by(first, "sort_key"))


# One process at a time, so that no call ever waits: a process that somebody holds is skipped. One UPDATE of all
# candidates would wait for each of them, and two such calls did deadlock, because nothing says in which order an UPDATE
# locks its rows. Citus skips locked rows only of a single process.
_HELD = (
    select(*process.primary_key)
    .where(IS_PROCESS, bindparam("key_stamp", type_=Text()) == STAMP)
    .with_for_update(key_share=True, skip_locked=True)
    .cte("held")
)
TAKE = (
    update(process)
    .where(IS_PROCESS, names_equal(process, _HELD, PROCESS_KEY))
    .values({"version": process.c.version + ONE, "updated_at": func.pg_catalog.now()})
    .returning(STAMP.label("written"))
)

# After so many losses in a row, others are probably claiming the same processes. Then more candidates are read, and
# tried in random order. Otherwise all workers would go on to try the same ones.
_LOSSES = 3
_WIDER = 4
_WIDEST = 16  # times as many as are wanted


class Claim(Generic[StateT]):
    """One call of `claim` by the version.

    Args:
        listing: The filter and the limit.
        reader: Turns rows into processes.
        unreadable: What to do with a process that cannot be read.
    """

    def __init__(
        self, listing: Listing, reader: ProcessReader[StateT], unreadable: Callable[[StoredDataError], object]
    ) -> None:
        self._listing = listing
        self._reader = reader
        self._unreadable = unreadable
        self._wanted: int = listing.parameters["limit"]
        self._tried: list[object] = []

    def take(self, tables: Tables) -> list[ProcessMetadata[StateT]]:
        """Read candidates, and take those that are still as they were read.

        If none was taken, the next candidates are tried, until there are no more.
        """
        check_can_lock(tables.connection)
        claimed: list[ProcessMetadata[StateT]] = []
        parameters = self._listing.parameters
        is_complete = self._listing.is_empty
        while not is_complete:
            statement = candidates(self._listing.statuses, self._listing.given)
            found = Rows.all(tables.execute(statement, parameters))
            are_all = found.count < parameters["limit"]
            claimed = self._take_of(tables, found, give_up=not are_all)
            is_complete = bool(claimed) or are_all
            wider = min(_WIDER * parameters["limit"], _WIDEST * self._wanted)
            parameters |= {"limit": wider, "seen": self._tried}
        return claimed

    def _take_of(self, tables: Tables, found: Rows, *, give_up: bool) -> list[ProcessMetadata[StateT]]:
        """Take some of the candidates. With `give_up`, only until others win too often."""
        stamps = dict(zip(found.columns["process_id"], found.columns["stamp"], strict=True))
        order = list(stamps)
        if self._tried:
            random.shuffle(order)
        taken: dict[object, Written] = {}
        losses = 0
        for process_id in order:
            if len(taken) == self._wanted or (give_up and losses == _LOSSES):
                break
            key = process_key(self._listing.parameters["key_domain"], process_id)
            written = read_written(tables.execute(TAKE, {**key, "key_stamp": stamps[process_id]}))
            self._tried.append(process_id)
            losses = losses + 1 if written is None else 0
            if written is not None:
                taken[process_id] = written
        processes = self._reader.read_all(found.only("process_id", taken), self._unreadable)
        for each in processes:
            set_stored(each, taken[each.process_id], is_committed=False)
        return processes
