"""Measure the queries with many processes, on an embedded PostgreSQL of its own: `make bench-scale`.

95 of 100 processes have ended, and each has five steps. A list is measured in the database: EXPLAIN ANALYZE of the
prepared statement after ten executions on one connection, so with the plan that an application gets.
"""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from uuid import UUID

import psycopg
from pydantic import BaseModel
from rich.table import Table
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from benchmarks.database import driver_url
from benchmarks.many import DOMAIN, FIRST, database_of, print_table
from commandbus_process import PostgresProcessQueries, ProcessFilter, ProcessStatus
from commandbus_process.postgres import _cursors
from commandbus_process.postgres._listing import Listing

_EXECUTIONS = 10
_ROUNDS = 9
_WARM = 1_000  # processes after which the memory of a stream is looked at


class State(BaseModel):
    """The typed state of a process."""

    number: int
    customer: str
    total: float
    items: list[str | int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the data, measure, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[10_000, 1_000_000], metavar="N")
    sizes: list[int] = parser.parse_args(arguments).processes
    table = Table("What", *(f"{size:,} processes" for size in sizes))
    columns = [_measured(size) for size in sizes]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    print_table(table)
    return 0


def _measured(size: int) -> dict[str, str]:
    with database_of(size) as url:
        return asyncio.run(_figures(url, size))


async def _figures(url: str, size: int) -> dict[str, str]:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        return await _all(engine, size) | {"the same by hand, as tuples": await _stream_by_hand(url)}
    finally:
        await engine.dispose()


async def _all(engine: AsyncEngine, size: int) -> dict[str, str]:
    queries = PostgresProcessQueries(engine)
    completed = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.COMPLETED])
    figures: dict[str, str] = {}

    async def read(name: str, call: Callable[[AsyncConnection], Awaitable[object]]) -> None:
        milliseconds, buffers = await _in_database(engine, call)
        elapsed = await _elapsed(engine, call)
        figures[name] = f"{milliseconds:.2f} ms, {buffers} buffers ({elapsed:.1f} ms for the caller)"

    rare = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.WAITING_FOR_TSQ])
    await read("page of a rare status", lambda conn: queries.page(rare, conn))
    for place, part in {"first": 0.0, "middle": 0.5, "last": 0.99}.items():
        after = _cursor_at(completed, FIRST + part * timedelta(seconds=size))
        await read(f"page of COMPLETED, {place}", partial(_page_after, queries, completed, after))
    await read("page of COMPLETED, with steps", lambda conn: queries.page(completed, conn, steps=True))
    key = ProcessFilter(domain=DOMAIN, business_key=f"A-{size // 2}")
    await read("page by business key", lambda conn: queries.page(key, conn))
    due = ProcessFilter(domain=DOMAIN, deadline_before=FIRST + timedelta(seconds=size // 2))
    await read("page by deadline", lambda conn: queries.page(due, conn))
    await read("count, up to 10,000", lambda conn: queries.count(completed, conn))
    await read("backlog", lambda conn: queries.backlog(DOMAIN, conn))
    last_day = ProcessFilter(domain=DOMAIN, created_after=FIRST + timedelta(seconds=size - 10_000))
    await read("step_statistics of 10,000 processes", lambda conn: queries.step_statistics(last_day, conn))
    await read("open_steps", lambda conn: queries.open_steps(ProcessFilter(domain=DOMAIN), conn))
    figures["stream, typed"] = await _stream(engine, completed)
    return figures


def _page_after(
    queries: PostgresProcessQueries[Any], wanted: ProcessFilter, after: str | None, conn: AsyncConnection
) -> Awaitable[object]:
    return queries.page(wanted, conn, after=after)


def _cursor_at(wanted: ProcessFilter, time: datetime) -> str | None:
    """Return the cursor of a position in the middle of a list, without going there page by page."""
    mark = _cursors.fingerprint(Listing(wanted), "processes", newest_first=False)
    return None if time == FIRST else _cursors.encode(mark, time.isoformat(), UUID(int=0))


async def _in_database(engine: AsyncEngine, call: Callable[[AsyncConnection], Awaitable[object]]) -> tuple[float, int]:
    """Return the median time in the database, in milliseconds, and the buffers, of a call's one statement."""
    times: list[float] = []
    buffers = 0
    async with engine.connect() as conn:
        for _ in range(_EXECUTIONS):
            await call(conn)
        with _explained(conn) as plans:
            for _ in range(_ROUNDS):
                await call(conn)
        for plan in plans:
            times.append(plan["Execution Time"])
            buffers = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    return median(times), buffers


@contextmanager
def _explained(conn: AsyncConnection) -> Generator[list[dict[str, Any]]]:
    """Explain each statement that is executed on a connection, in the generic plan, and collect the plans."""
    plans: list[dict[str, Any]] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:  # noqa: ANN401
        del connection
        cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}", parameters)
        [(plan,)] = cursor.fetchall()
        plans.append((json.loads(plan) if isinstance(plan, str) else plan)[0])

    assert conn.sync_connection is not None
    event.listen(conn.sync_connection, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(conn.sync_connection, "before_cursor_execute", explain)


async def _elapsed(engine: AsyncEngine, call: Callable[[AsyncConnection], Awaitable[object]]) -> float:
    async with engine.connect() as conn:
        times: list[float] = []
        for _ in range(_EXECUTIONS + _ROUNDS):
            start = perf_counter()
            await call(conn)
            times.append(perf_counter() - start)
    return median(times[_EXECUTIONS:]) * 1_000


async def _stream(engine: AsyncEngine, wanted: ProcessFilter) -> str:
    queries = PostgresProcessQueries(engine, state_type=State)
    number, before = 0, 0
    start = perf_counter()
    async with queries.stream(wanted) as stream:
        async for process in stream:
            number += 1
            if number == _WARM:
                before = _memory()
            del process
    seconds = perf_counter() - start
    return f"{number / seconds:,.0f} a second, {(_memory() - before) / 1024:.1f} MB more"


_BY_HAND = """
SELECT domain, process_id, process_type, status, current_step, state::text, error_code, error_message, created_at,
       updated_at, completed_at, version, business_key, deadline
FROM commandbus.process
WHERE domain = %s AND status = %s AND (created_at, process_id) > (%s, %s)
ORDER BY created_at, process_id LIMIT 1000
"""


async def _stream_by_hand(url: str) -> str:
    """Read the same processes as tuples, and their states, as somebody would write it who needs nothing more."""
    created_at, process_id, number = FIRST, UUID(int=0), 0
    start = perf_counter()
    async with await psycopg.AsyncConnection.connect(driver_url(make_url(url)), autocommit=True) as connection:
        while True:
            cursor = await connection.execute(_BY_HAND, (DOMAIN, "COMPLETED", created_at, process_id))
            rows = await cursor.fetchall()
            if not rows:
                return f"{number / (perf_counter() - start):,.0f} a second"
            for row in rows:
                State.model_validate_json(row[5])
            number += len(rows)
            created_at, process_id = rows[-1][8], rows[-1][1]


def _memory() -> int:
    """Return how much memory this process holds, in KiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


if __name__ == "__main__":
    raise SystemExit(main())
