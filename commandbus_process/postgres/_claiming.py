"""Claim processes by their version: read candidates without a lock, and take those that nobody has changed since."""

from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Connection, Select, Text, Uuid, any_, bindparam, cast, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process.errors import StoredDataError
from commandbus_process.models import ProcessMetadata, StateT
from commandbus_process.postgres._expressions import ONE, PROCESS_ROW, STAMP, key_parameter, selected
from commandbus_process.postgres._listing import LIMIT, Listing, in_order, sorted_by
from commandbus_process.postgres._reading import ProcessReader, Rows
from commandbus_process.postgres._stamps import set_stored, written_from
from commandbus_process.postgres._transaction import check_can_lock, run
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


# The rows are found by an array, not by a join with rows that are sent: Citus updates them across shards in this form.
# PostgreSQL looks up the ids of an array in ascending order if it reads the primary key.
TAKE = (
    update(process)
    .where(
        process.c.domain == key_parameter(process.c.domain),
        process.c.process_id == any_(bindparam("ids", type_=ARRAY(Uuid))),
        cast(process.c.process_id, Text).concat(STAMP) == any_(bindparam("found", type_=ARRAY(Text))),
    )
    .values({"version": process.c.version + ONE, "updated_at": func.pg_catalog.now()})
    .returning(process.c.process_id, STAMP.label("stamp"))
)


async def claim_by_version(
    engine: AsyncEngine,
    conn: AsyncConnection,
    listing: Listing,
    reader: ProcessReader[StateT],
    unreadable: Callable[[StoredDataError], object],
) -> list[ProcessMetadata[StateT]]:
    """Read candidates, take those that are still as they were read, and return these.

    If all were lost, the next candidates are tried. If some were won, they are returned: a call that holds processes
    and waits for more could wait for another call, which holds those.

    Args:
        engine: The repository's engine.
        conn: The caller's connection.
        listing: The filter and the limit.
        reader: Turns rows into processes.
        unreadable: What to do with a process that cannot be read.
    """

    def work(connection: Connection) -> tuple[Rows, dict[UUID, str]]:
        check_can_lock(connection)
        found = Rows.all(connection.execute(candidates(listing.statuses, listing.given), listing.parameters))
        if not found.count:
            return found, {}
        values = {
            "key_domain": listing.parameters["key_domain"],
            "ids": list(found.columns["process_id"]),
            "found": [*map("{}{}".format, found.columns["process_id"], found.columns["stamp"])],
        }
        return found, {each.process_id: each.stamp for each in connection.execute(TAKE, values)}

    claimed: list[ProcessMetadata[StateT]] = []
    is_complete = listing.is_empty
    while not is_complete:
        found, taken = await run(engine, conn, work)
        claimed = reader.read_all(found.only("process_id", taken), unreadable)
        for each in claimed:
            set_stored(each, written_from(taken[each.process_id]), is_committed=False)
        is_complete = bool(claimed) or not listing.look_further(found, 0)
    return claimed
