"""Many items in batches; the next one is prepared while the server has the last."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from commandbus_process._input import within
from commandbus_process._json import json_array, json_row
from commandbus_process._statements import JSON_COLUMNS
from commandbus_process.errors import InvalidInputError

ItemT = TypeVar("ItemT")

_MOST_ITEMS = 1000
_MOST_CHARACTERS = 1_000_000
# How many items are prepared before others get their turn: the statement under way, and the application's tasks.
_ITEMS_A_TURN = 50


class Prepared(NamedTuple):
    """An item as it is sent: its columns, of which those that are JSON are text, and how many characters these have."""

    key: Hashable
    row: Mapping[str, Any]
    size: int


class Batch(Generic[ItemT]):
    """Items that go with one statement, no two with the same key: the second is to meet the first in the table."""

    def __init__(self) -> None:
        self.items: list[ItemT] = []
        self._rows: list[Mapping[str, Any]] = []
        self._keys: set[Hashable] = set()
        self._size = 0

    def has_room_for(self, prepared: Prepared) -> bool:
        """Whether the item can go with the others; a first one always can."""
        return not self.items or (
            len(self.items) < _MOST_ITEMS
            and self._size + prepared.size <= _MOST_CHARACTERS
            and prepared.key not in self._keys
        )

    def add(self, item: ItemT, prepared: Prepared) -> None:
        """Put an item behind the others."""
        self.items.append(item)
        self._rows.append(prepared.row)
        self._keys.add(prepared.key)
        self._size += prepared.size

    def as_json(self) -> str:
        """Return the items as a JSON array of objects, which have their positions."""
        return json_array(
            json_row({"position": position, **row}, JSON_COLUMNS) for position, row in enumerate(self._rows)
        )

    def rows(self, names: Iterable[str]) -> list[Sequence[Any]]:
        """Return the items as rows of the named columns."""
        return list(map(itemgetter(*names), self._rows))


async def in_batches(
    what: str,
    items: Iterable[ItemT] | AsyncIterable[ItemT],
    prepare: Callable[[ItemT], Prepared],
    write: Callable[[Batch[ItemT]], Awaitable[int]],
    *,
    ahead: bool,
) -> int:
    """Write all items, and return how many were written.

    Args:
        what: What to call the items in an error.
        items: Asked for as they are needed; two batches are held in memory.
        prepare: Checks an item and turns it into what is sent.
        write: Sends a batch.
        ahead: Whether items may be asked for while a batch is being sent. Not on a connection of the caller's: the
            items may come from it.

    Raises:
        InvalidInputError: From `prepare`, the item's position with the field.
    """
    written = 0
    sending: asyncio.Task[int] | None = None
    try:
        async for batch in _batches(what, items, prepare):
            if sending is not None:
                written += await sending
            sending = asyncio.ensure_future(write(batch))
            if not ahead:
                await sending
        if sending is not None:
            written += await sending
    finally:
        if sending is not None:
            # Where an item was refused or this task cancelled, the connection is not free before the statement ends,
            # and its error is nobody's.
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return written


async def _batches(
    what: str, items: Iterable[ItemT] | AsyncIterable[ItemT], prepare: Callable[[ItemT], Prepared]
) -> AsyncGenerator[Batch[ItemT]]:
    batch = Batch[ItemT]()
    position = 0
    async for item in _each(items):
        try:
            prepared = prepare(item)
        except InvalidInputError as error:
            raise within(f"{what}[{position}]", error) from error
        if not batch.has_room_for(prepared):
            yield batch
            batch = Batch[ItemT]()
        batch.add(item, prepared)
        position += 1
        if position % _ITEMS_A_TURN == 0:
            await asyncio.sleep(0)
    if batch.items:
        yield batch


async def _each(items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncIterator[ItemT]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
