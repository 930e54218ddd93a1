"""Read any number of processes, one after the other, in flat memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic
from uuid import UUID

from sqlalchemy import Select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from commandbus_process.errors import StoredDataError
from commandbus_process.models import ProcessMetadata, StateT
from commandbus_process.postgres._database import check_connection
from commandbus_process.postgres._reading import ProcessReader, Rows, unquoted
from commandbus_process.postgres._transaction import (
    check_in_transaction,
    transaction,
    translated_errors,
)

BATCH = 1_000
"""How many rows are read at a time, and held in memory."""

MADE_AT_ONCE = 50
"""How many processes are made of them at a time. The memory of 1,000 would not stay in the processor's cache."""


class ProcessStream(AsyncIterator[ProcessMetadata[StateT]], Generic[StateT]):
    """The processes that a filter selects, one after the other.

    Args:
        read: Reads the next rows; no rows: that was all.
        reader: Turns the rows into processes.
        unreadable: What to do with the error about a row that cannot be read.
        cursor_of: Returns the cursor for the text of a sort key and an id.
        cursor: Where the stream begins.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Rows]],
        reader: ProcessReader[StateT],
        unreadable: Callable[[StoredDataError], object],
        cursor_of: Callable[[str, UUID], str],
        cursor: str | None,
    ) -> None:
        self._read = read
        self._reader = reader
        self._unreadable = unreadable
        self._cursor_of = cursor_of
        self._begin = cursor
        self._rows = Rows((), ())
        self._items: list[ProcessMetadata[StateT]] = []  # in reverse, so that the next one is the last one
        self._keys: dict[UUID, str] = {}
        self._last: UUID | None = None

    @property
    def cursor(self) -> str | None:
        """The position after the last returned process, to go on there later as `after`. It can stand in a URL.

        `None`: the stream began at the beginning, and has returned nothing yet.
        """
        return self._begin if self._last is None else self._cursor_of(unquoted(self._keys[self._last]), self._last)

    @override
    async def __anext__(self) -> ProcessMetadata[StateT]:
        while not self._items:
            await self._make_more()
        process = self._items.pop()
        self._last = process.process_id
        return process

    async def _make_more(self) -> None:
        if not self._rows.count:
            self._rows = await self._read()
        rows = self._rows.take(MADE_AT_ONCE)
        if not rows.count:
            raise StopAsyncIteration
        self._begin, self._last = self.cursor, None
        keys: Any = rows.columns.pop("sort_key")
        self._keys = dict(zip(rows.columns["process_id"], keys, strict=True))
        self._items = self._reader.read_all(rows, self._unreadable)[::-1]


@asynccontextmanager
async def read_only(engine: AsyncEngine, conn: AsyncConnection | None) -> AsyncGenerator[AsyncConnection]:
    """Yield a connection in a read-only transaction, or the caller's."""
    check_connection(conn)
    if conn is None:
        async with transaction(engine) as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection
    else:
        await conn.run_sync(check_in_transaction, "where a cursor ends with its statement")
        yield conn


@asynccontextmanager
async def server_side(
    connection: AsyncConnection, statement: Select[Any], values: dict[str, Any], options: Mapping[str, Any]
) -> AsyncGenerator[Callable[[], Awaitable[Rows]]]:
    """Open a cursor in the server, and yield what reads its next rows."""
    with translated_errors("filter"):
        result = await connection.stream(statement, values, execution_options={"yield_per": BATCH, **options})
    try:

        async def read() -> Rows:
            with translated_errors("filter"):
                return Rows(result.keys(), await result.fetchmany(BATCH))

        yield read
    finally:
        await _finished(result.close())


async def _finished(work: Coroutine[Any, Any, None]) -> None:
    """Wait for something that must not be interrupted. A cancellation comes after it.

    In a scope of anyio's that is cancelled, each wait is cancelled, again and again.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
