"""The queries: lists, streams and numbers of any number of processes. They only read."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Annotated, Generic, overload

from pydantic import Field, TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process._arguments import LIMIT, TIME, checked, unreadable_handler
from commandbus_process._state_versions import StateVersions
from commandbus_process._states import States
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import JsonObject, StateT
from commandbus_process.postgres import _cursors, _pages, _statistics
from commandbus_process.postgres._database import Database, Tables
from commandbus_process.postgres._listing import NOT_ENDED, Listing
from commandbus_process.postgres._numbers import read_backlog, read_open_commands, read_statistics
from commandbus_process.postgres._reading import ProcessReader, Rows, read_summaries, reading, unquoted
from commandbus_process.postgres._stream import BATCH, ProcessStream, read_only, server_side
from commandbus_process.postgres._transaction import run
from commandbus_process.repository import OnUnreadable
from commandbus_process.summaries import BacklogGroup, Count, OpenCommand, Page, ProcessSummary, StepStatistics

# One more row than a page has is read, to know whether there is another page.
_PAGE_LIMIT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=100_000)])
_KIND = "processes"


class PostgresProcessQueries(Generic[StateT]):
    """Reads lists, streams and numbers of processes, and changes nothing. Safe to share between tasks.

    The engine may be that of a replica. All answers are then as old as the replica is.

    Every method takes `conn`, as those of the repository do. A filter that no index serves raises
    `UnindexedFilterError`, unless you pass `allow_scan=True`: among millions of processes that have ended it would read
    nearly all of them. An index serves statuses alone, a business key, a deadline, a range that begins with
    `created_after`, and any filter whose statuses are not terminal.

    Args:
        engine: The engine from which a method without `conn` borrows a connection. You configure it and dispose of it.
        state_type: The type of the states, as in `PostgresProcessRepository`. Only `stream` reads states.
        schema: The schema that has the tables. Without it, `commandbus`, or what a `schema_translate_map` of the engine
            or of your connection says.
    """

    @overload
    def __init__(
        self: "PostgresProcessQueries[JsonObject]", engine: AsyncEngine, *, schema: str | None = None
    ) -> None: ...
    @overload
    def __init__(
        self, engine: AsyncEngine, *, state_type: type[StateT] | Mapping[str, type[StateT]], schema: str | None = None
    ) -> None: ...
    @overload
    def __init__(
        self,
        engine: AsyncEngine,
        *,
        state_type: StateVersions[StateT] | Mapping[str, StateVersions[StateT]],
        schema: str | None = None,
    ) -> None: ...
    @overload
    def __init__(self, engine: AsyncEngine, *, state_type: object, schema: str | None = None) -> None: ...
    def __init__(self, engine: AsyncEngine, *, state_type: object = None, schema: str | None = None) -> None:
        self._database = Database(engine, schema)
        self._states: States[StateT] = States(state_type)
        self._reader = ProcessReader(self._states)

    async def page(  # noqa: PLR0913 - what to read, and how
        self,
        filter: ProcessFilter,  # noqa: A002 - the word for it
        conn: AsyncConnection | None = None,
        *,
        limit: int = 100,
        after: str | None = None,
        newest_first: bool = False,
        steps: bool = False,
        allow_scan: bool = False,
        on_unreadable: OnUnreadable = "raise",
    ) -> Page[ProcessSummary]:
        """Return one page of the processes that match, without their states.

        The order is `created_at`, then `process_id`. With `deadline_before` it is the deadline, then `process_id`. Any
        page costs what the first one does. Go through all pages, and you see each process once that is there, and
        matches, from the first page to the last. A process whose deadline changes meanwhile can come twice, or not at
        all, in a list by deadlines. One round trip; takes no lock.

        Args:
            filter: Which processes.
            conn: Your connection, if any.
            limit: The maximum number of processes, from 1 to 100,000.
            after: The `next` of the page before; `None` for the first page.
            newest_first: Whether to reverse the order.
            steps: Whether to read `open_commands` and `in_step_since` from the trails, too.
            allow_scan: Whether a filter is allowed that no index serves.
            on_unreadable: What to do with a process that cannot be read. If it is left out, the page has fewer items.

        Raises:
            UnindexedFilterError: No index serves the filter.
            InvalidInputError: The cursor is damaged, or belongs to another filter or order.
            StoredDataError: A column has a value that this version does not know. The error names the process.
        """
        handle = unreadable_handler(on_unreadable)
        size = checked(_PAGE_LIMIT, "limit", limit)
        listing = self._listing(filter, allow_scan=allow_scan)
        mark = _cursors.fingerprint(listing, _KIND, newest_first=newest_first)
        if listing.is_empty:
            return Page([], None)
        listing.parameters["limit"] = size + 1
        _go_on(listing, mark, after)
        statement = _pages.summaries(listing.statuses, listing.given, newest_first=newest_first, steps=steps)
        rest = await run(self._database, conn, reading(statement, listing.parameters))
        rows = rest.take(size)
        following = _cursors.encode(mark, *_pages.last_row(rows).values()) if rest.count else None
        del rows.columns["sort_key"]
        return Page(read_summaries(rows, handle), following)

    @asynccontextmanager
    async def stream(
        self,
        filter: ProcessFilter,  # noqa: A002 - the word for it
        conn: AsyncConnection | None = None,
        *,
        after: str | None = None,
        newest_first: bool = False,
        consistent: bool = False,
        allow_scan: bool = False,
        on_unreadable: OnUnreadable = "raise",
    ) -> AsyncGenerator[ProcessStream[StateT]]:
        """Open a stream of the processes that match, with their states, in the order of `page`.

            async with queries.stream(ProcessFilter(domain="orders")) as processes:
                async for process in processes:
                    ...

        At most 1,000 processes are held in memory. Leave the block when you like: nothing stays open. By default the
        processes are read in pages, and no transaction stays open between them. The stream's `cursor` goes on after the
        last process, even in another program. With a mapping as `state_type`, only the types in it are returned.

        Args:
            filter: Which processes.
            conn: Your connection, if any. Do not use it for anything that changes the order while the stream is open.
            after: The `cursor` of an earlier stream, or the `next` of a page with the same filter.
            newest_first: Whether to reverse the order.
            consistent: Whether all processes are as they were at one moment. Then one cursor is open in the server, in
                a read-only REPEATABLE READ transaction, for as long as the stream is: VACUUM cannot clean up behind it.
                On your connection, the cursor lives in your transaction.
            allow_scan: Whether a filter is allowed that no index serves.
            on_unreadable: What to do with a process that cannot be read.

        Raises:
            UnindexedFilterError: No index serves the filter.
            InvalidInputError: The cursor is damaged, or belongs to another filter or order. Or with `consistent`, the
                connection is in autocommit.
            StoredStateError: A state does not fit its type. The error names the process.
            StoredDataError: Another column has a value that this version does not know. The error names the process.
        """
        handle = unreadable_handler(on_unreadable)
        listing = self._listing(filter, allow_scan=allow_scan)
        mark = _cursors.fingerprint(listing, _KIND, newest_first=newest_first)
        _go_on(listing, mark, after)
        listing.only_types(self._states.process_types)

        def opened(read: Callable[[], Awaitable[Rows]]) -> ProcessStream[StateT]:
            return ProcessStream(read, self._reader, handle, partial(_cursors.encode, mark), after)

        if listing.is_empty:
            yield opened(_nothing)
        elif consistent:
            async with read_only(self._database.engine, conn) as connection:
                statement = _pages.processes(listing.statuses, listing.given, newest_first=newest_first)
                opening = server_side(connection, statement, listing.parameters, self._database.options)
                async with opening as read:
                    yield opened(read)
        else:
            listing.parameters["limit"] = BATCH

            async def read_page() -> Rows:
                statement = _pages.processes(listing.statuses, listing.given, newest_first=newest_first)
                rows = await run(self._database, conn, reading(statement, listing.parameters))
                if rows.count:
                    listing.parameters |= _pages.last_row(rows)
                return rows

            yield opened(read_page)

    async def count(
        self,
        filter: ProcessFilter,  # noqa: A002 - the word for it
        conn: AsyncConnection | None = None,
        *,
        at_most: int = 10_000,
        allow_scan: bool = False,
    ) -> Count:
        """Return how many processes match. It counts up to `at_most`, and says whether there are more.

        One round trip; takes no lock.

        Args:
            filter: Which processes.
            conn: Your connection, if any.
            at_most: Where to stop.
            allow_scan: Whether a filter is allowed that no index serves.

        Raises:
            UnindexedFilterError: No index serves the filter.
        """
        most = checked(LIMIT, "at_most", at_most)
        listing = self._listing(filter, allow_scan=allow_scan)
        if listing.is_empty:
            return Count(0, exact=True)
        listing.parameters["limit"] = most + 1
        statement = _pages.count(listing.statuses, listing.given)

        def work(tables: Tables) -> int:
            found: int = tables.execute(statement, listing.parameters).scalar_one()
            return found

        found = await run(self._database, conn, work)
        return Count(min(found, most), exact=found <= most)

    async def backlog(
        self, domain: str, conn: AsyncConnection | None = None, *, process_type: str | None = None
    ) -> list[BacklogGroup]:
        """Return the processes that have not ended, counted by type, status and step, in that order.

        It reads all of them: 15,000 took 33 ms. One round trip; takes no lock. A deadline counts as past by the
        clock of the database.

        Args:
            domain: The domain.
            conn: Your connection, if any.
            process_type: Count only processes of this type.
        """
        listing = Listing(ProcessFilter(domain=domain, process_type=process_type))
        rows = await run(self._database, conn, reading(_statistics.backlog(listing.given), listing.parameters))
        return read_backlog(rows)

    async def step_statistics(
        self,
        filter: ProcessFilter,  # noqa: A002 - the word for it
        conn: AsyncConnection | None = None,
        *,
        allow_scan: bool = False,
    ) -> list[StepStatistics]:
        """Return how often each step of the processes that match was taken, how it ended, and how long it took.

        Counted and measured in the database, which reads the trails of all these processes. So if the filter has
        terminal statuses, it needs `created_after`, `deadline_before` or a business key. In the order of the names. One
        round trip; takes no lock.

        Args:
            filter: Which processes.
            conn: Your connection, if any.
            allow_scan: Whether a filter is allowed that reads without a limit.

        Raises:
            UnindexedFilterError: The filter has terminal statuses, and nothing limits what is read.
        """
        listing = self._listing(filter, allow_scan=allow_scan, reads_trails=True)
        if listing.is_empty:
            return []
        statement = _statistics.step_statistics(listing.statuses, listing.given)
        return read_statistics(await run(self._database, conn, reading(statement, listing.parameters)))

    async def open_steps(
        self,
        filter: ProcessFilter,  # noqa: A002 - the word for it
        conn: AsyncConnection | None = None,
        *,
        sent_before: datetime | None = None,
        limit: int = 100,
        after: str | None = None,
        allow_scan: bool = False,
        on_unreadable: OnUnreadable = "raise",
    ) -> Page[OpenCommand]:
        """Return one page of the commands that have no reply, the one that was sent first at the front.

        It shows what everybody is waiting for, and since when. If the filter names no statuses, only processes that
        have not ended are looked at. Their trails are read for each page. One round trip; takes no lock.

        Args:
            filter: The processes whose commands are looked for.
            conn: Your connection, if any.
            sent_before: Only commands that were sent before this time.
            limit: The maximum number of commands, from 1 to 100,000.
            after: The `next` of the page before; `None` for the first page.
            allow_scan: Whether a filter is allowed that reads without a limit.
            on_unreadable: What to do with a command that cannot be read. If it is left out, the page has fewer items.

        Raises:
            UnindexedFilterError: The filter names terminal statuses, and nothing limits what is read.
            InvalidInputError: The cursor is damaged, or belongs to another filter or `sent_before`.
            StoredDataError: A command was sent at a time that Python cannot represent. The error names the command.
        """
        handle = unreadable_handler(on_unreadable)
        size = checked(_PAGE_LIMIT, "limit", limit)
        before = None if sent_before is None else checked(TIME, "sent_before", sent_before)
        listing = Listing(filter)
        if filter.statuses is None:
            listing.statuses = NOT_ENDED
        if not allow_scan:
            listing.check_indexed(reads_trails=True)
        mark = _cursors.fingerprint(listing, "open steps", sent_before=before)
        if after is not None:
            key, ids = _cursors.decode(mark, after, 2)
            listing.parameters |= {"after_key": key, **dict(zip(("after_id", "after_command"), ids, strict=True))}
        if listing.is_empty:
            return Page([], None)
        statement = _statistics.open_steps(listing.statuses, listing.given, before=before is not None)
        values = {**listing.parameters, "limit": size + 1, "sent_before": before}
        rest = await run(self._database, conn, reading(statement, values))
        rows = rest.take(size)
        following = None
        if rest.count:
            key, process_id, command_id = (rows.columns[name][-1] for name in ("sent_at", "process_id", "command_id"))
            following = _cursors.encode(mark, unquoted(key), process_id, command_id)
        return Page(read_open_commands(rows, handle), following)

    def _listing(self, wanted: ProcessFilter, *, allow_scan: bool, reads_trails: bool = False) -> Listing:
        listing = Listing(wanted)
        if not allow_scan:
            listing.check_indexed(reads_trails=reads_trails)
        return listing


def _go_on(listing: Listing, mark: bytes, after: str | None) -> None:
    """Make a list go on after a cursor."""
    if after is not None:
        key, [process_id] = _cursors.decode(mark, after)
        listing.parameters |= {"after_key": key, "after_id": process_id}


async def _nothing() -> Rows:
    return Rows((), ())
