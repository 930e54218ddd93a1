"""What rows are known to hold, so that an update can leave out a state that did not change.

It is kept in a slot of the process, which copies, comparisons, dumps and pickles do not see. It counts only for the
very row and version that the object had then, and only where it is sure to hold: what was committed, for all
transactions of that database; what was seen inside a transaction, in that one only, as it may be rolled back.

Nothing is kept of short states: to send one costs less than to find out that it is the same.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process._rows import Rows
from commandbus_process.models import KNOWN_STATE, ProcessMetadata

SHORTEST = 2000
"""Characters. Up to about as many bytes PostgreSQL keeps in the row itself, and so writes them again in any case."""


class Place(NamedTuple):
    """Where something is known: the pool stands for its database; without a transaction it is committed."""

    pool: object
    transaction: object | None


def place_of(engine: AsyncEngine, conn: AsyncConnection | None) -> Place:
    """Return where a statement is executed, or was."""
    connection = None if conn is None else conn.sync_connection
    if connection is None:
        return Place(engine.sync_engine.pool, None)
    return Place(connection.engine.pool, connection.get_nested_transaction() or connection.get_transaction())


def remember_states(processes: Iterable[ProcessMetadata[Any]], rows: Rows, place: Place) -> None:
    """Note the JSON text of the state that each process was just read from."""
    columns = rows.columns
    known = zip(
        repeat(place), columns["domain"], columns["process_id"], columns["version"], columns["state"], strict=False
    )
    for process, each in zip(processes, known, strict=True):
        if len(each[-1]) >= SHORTEST:
            object.__setattr__(process, KNOWN_STATE, each)


def remember_state(process: ProcessMetadata[Any], text: str, place: Place) -> None:
    """Note the JSON text of the state that was written, or that the process alone was read from."""
    known = None
    if len(text) >= SHORTEST:
        known = place, process.domain, process.process_id, process.version, text
    object.__setattr__(process, KNOWN_STATE, known)


def forget(process: ProcessMetadata[Any]) -> None:
    """Note that nothing is known of the row that the object has now."""
    object.__setattr__(process, KNOWN_STATE, None)


def known_state(process: ProcessMetadata[Any], place: Place) -> str | None:
    """Return the text of the state that the row has at the object's version; `None` if that is not known."""
    known_place, *row, text = getattr(process, KNOWN_STATE, None) or (None, None)
    is_valid = known_place in (place, Place(place.pool, None))
    return text if is_valid and row == [process.domain, process.process_id, process.version] else None
