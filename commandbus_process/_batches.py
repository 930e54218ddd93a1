"""Split many items into batches, and prepare the next batch while the last one is written."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from pydantic import BaseModel

from commandbus_process._arguments import (
    check_key,
    check_loggable,
    check_process,
    entry_columns,
    in_path,
    new_process_columns,
)
from commandbus_process._columns import JSON
from commandbus_process._parameters import json_rows
from commandbus_process.errors import InvalidInputError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, StateT

ItemT = TypeVar("ItemT")
Step: TypeAlias = tuple[str, UUID, ProcessAuditEntry]

_MOST_ITEMS = 1000
_MOST_CHARACTERS = 1_000_000
# After so many items, other tasks get their turn: the statement that is being sent, and the application's own tasks.
_ITEMS_A_TURN = 50


class Prepared(NamedTuple):
    """An item as it is sent: its key, its columns (JSON as text), and the number of characters of that JSON."""

    process: tuple[str, UUID]
    command_id: UUID | None
    row: Mapping[str, Any]
    size: int


class Batch(Generic[ItemT]):
    """Items that are written by one statement.

    No two have the same key. A second item with the same key goes into the next batch, so that it conflicts with the
    first one in the table.

    Items are written in the order of their processes' keys. So two calls that overlap lock the same rows in the same
    order, and cannot deadlock. The items of one process keep their order.
    """

    def __init__(self) -> None:
        self.items: list[ItemT] = []
        self.prepared: list[Prepared] = []
        self._keys: set[tuple[tuple[str, UUID], UUID | None]] = set()
        self._size = 0

    def has_room_for(self, prepared: Prepared) -> bool:
        """Whether the item fits into the batch. The first item always fits."""
        return not self.items or (
            len(self.items) < _MOST_ITEMS
            and self._size + prepared.size <= _MOST_CHARACTERS
            and (prepared.process, prepared.command_id) not in self._keys
        )

    def add(self, item: ItemT, prepared: Prepared) -> None:
        """Append an item."""
        self.items.append(item)
        self.prepared.append(prepared)
        self._keys.add((prepared.process, prepared.command_id))
        self._size += prepared.size

    def order(self) -> list[int]:
        """Return the positions of the items in the order in which they are written."""

        def key(position: int) -> tuple[str, int]:
            domain, process_id = self.prepared[position].process
            return domain, process_id.int  # integers are compared in C, UUIDs in Python

        return sorted(range(len(self.items)), key=key)

    def as_json(self, only: Iterable[int] | None = None) -> str:
        """Return the items as a JSON array of objects, in the order of writing. `position` is the number in that order.

        Args:
            only: The numbers of the items to return; all by default.
        """
        order = self.order()
        numbers = range(len(order)) if only is None else only
        return json_rows({number: self.prepared[order[number]].row for number in numbers})

    def rows(self, names: Iterable[str]) -> list[Sequence[Any]]:
        """Return the items as rows of the named columns, in the order of writing."""
        values = itemgetter(*names)
        return [values(self.prepared[position].row) for position in self.order()]


def check_iterable(what: str, items: object, item_type: str) -> None:
    """Reject what is not an iterable of items. A single model is iterable, too, but yields its fields.

    Raises:
        InvalidInputError: It is not an iterable, or a single model.
    """
    if isinstance(items, BaseModel) or not isinstance(items, Iterable | AsyncIterable):
        raise InvalidInputError(what, f"must be an iterable of {item_type}, not {type(items).__name__}")


def prepare_process(
    process: ProcessMetadata[StateT], state_columns: Callable[[ProcessMetadata[StateT]], Mapping[str, Any]]
) -> Prepared:
    """Check a process, and return it as it is sent."""
    check_process(process)
    row = {**new_process_columns(process), **state_columns(process)}
    return Prepared((process.domain, process.process_id), None, row, len(row["state"]))


def prepare_step(step: Step) -> Prepared:
    """Check a step, and return it as it is sent."""
    domain, process_id, entry = _checked_step(step)
    check_key(domain, process_id)
    check_loggable(entry)
    row: dict[str, Any] = {**entry_columns(entry), "domain": domain, "process_id": process_id}
    size = sum(len(row[name]) for name in JSON if row.get(name) is not None)
    return Prepared((domain, process_id), entry.command_id, row, size)


def _checked_step(step: tuple[Any, ...]) -> Step:
    """Return a step that is a tuple of three with an entry. Its domain and process id are not checked here."""
    if not isinstance(step, tuple):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError("entry", f"must be (domain, process id, ProcessAuditEntry), not {type(step).__name__}")
    match step:
        case (domain, process_id, ProcessAuditEntry() as entry):
            return domain, process_id, entry
        case (_, _, other):
            raise InvalidInputError("entry", f"must be a ProcessAuditEntry, not {type(other).__name__}")
        case wrong:
            raise InvalidInputError(
                "entry", f"must be (domain, process id, ProcessAuditEntry), not {len(wrong)} values"
            )


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
        what: The name of the items in an error.
        items: The items. The iterable is consumed lazily. At most two batches are in memory.
        prepare: Checks an item and turns it into what is sent.
        write: Writes a batch.
        ahead: Whether to consume items while a batch is being written. `False` on the caller's connection, because the
            items may be read from it.

    Raises:
        InvalidInputError: An error of `prepare`, with the item's position in its field.
    """
    written = 0
    sending: asyncio.Task[int] | None = None
    try:
        async with aclosing(_batches(what, items, prepare)) as batches:
            async for batch in batches:
                if not ahead:
                    written += await write(batch)
                    continue
                if sending is not None:
                    written += await sending
                sending = asyncio.ensure_future(write(batch))
            if sending is not None:
                written += await sending
    finally:
        if sending is not None:
            # If an item was rejected or this task was cancelled, wait until the statement has ended: only then is the
            # connection free. The statement's own error is dropped.
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            # The task refers to its error, the error to its traceback, and the traceback to this frame. If this frame
            # still referred to the task, that cycle would keep the caller's items until the garbage collector runs.
            del sending
    return written


async def _batches(
    what: str, items: Iterable[ItemT] | AsyncIterable[ItemT], prepare: Callable[[ItemT], Prepared]
) -> AsyncGenerator[Batch[ItemT]]:
    batch = Batch[ItemT]()
    position = 0
    async with aclosing(_each(items)) as each:
        async for item in each:
            try:
                prepared = prepare(item)
            except InvalidInputError as error:
                raise in_path(f"{what}[{position}]", error) from error
            if not batch.has_room_for(prepared):
                yield batch
                batch = Batch[ItemT]()
            batch.add(item, prepared)
            position += 1
            if position % _ITEMS_A_TURN == 0:
                await asyncio.sleep(0)
    if batch.items:
        yield batch


async def _each(items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncGenerator[ItemT]:
    """Yield each item. The caller's own iterator stays open. A generator that `__aiter__` made here is closed."""
    if isinstance(items, AsyncIterable):
        iterator = aiter(items)
        try:
            async for item in iterator:
                yield item
        finally:
            if iterator is not items and isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
    else:
        for item in items:
            yield item
