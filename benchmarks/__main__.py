"""Measure this library against hand-written SQL, on an embedded PostgreSQL of its own: `make bench`."""

import asyncio
import atexit
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from shutil import copy, rmtree
from statistics import median
from tempfile import mkdtemp
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from rich.console import Console
from sqlalchemy import URL

from benchmarks.chart import draw
from benchmarks.compare import DifferenceError
from benchmarks.core import core
from benchmarks.data import reading_data
from benchmarks.database import Database, driver_url
from benchmarks.dbos_step import dbos
from benchmarks.delay_proxy import delayed
from benchmarks.figures import Figures, is_step, with_means
from benchmarks.langgraph_step import langgraph
from benchmarks.measure import Cell, measure_bulk
from benchmarks.operations import Mode, operations
from benchmarks.options import BULK, Options, parsed
from benchmarks.ours import ours
from benchmarks.page import write_page
from benchmarks.raw import raw
from benchmarks.reference import reference
from benchmarks.report import Facts, machine, show, versions, write_figures
from demo.server import Server, ServerError, running_server

if TYPE_CHECKING:
    from benchmarks.side import Peer

_TABLE_WIDTH = 190  # where there is no terminal
_PEERS = ("bench_langgraph", "bench_dbos")  # their databases, in which they make tables of their own
_ROUND_TRIPS = 50
_NO_DISK = {"fsync": "off", "synchronous_commit": "off"}
# Nothing of the server's own may come in between; the benchmark tidies up between the rounds.
_SETTINGS = {"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "8GB", "max_connections": "500"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code: 0 whatever the times are, 1 where a side did not do the same work."""
    options = parsed(arguments)
    _end_like_ctrl_c()
    try:
        return _run(options)
    except DifferenceError as error:
        print(f"The sides did not do the same work. {error}", file=sys.stderr)
        return 1
    except (ServerError, TimeoutError) as error:
        print(f"The benchmark has failed: {error!r}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _end_like_ctrl_c() -> None:
    """Clean up after `kill` and a closed terminal too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _run(options: Options) -> int:
    folder = Path(mkdtemp(prefix="commandbus-bench-"))
    atexit.register(rmtree, folder, ignore_errors=True)  # after the embedded server's own cleanup, which needs it
    date, load_average = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", os.getloadavg()[0]
    with ExitStack() as stack:
        server = stack.enter_context(running_server(None, folder))
        settings = _configured(server, durable=options.durable)
        databases = [
            stack.enter_context(closing(Database(server.url, f"bench_{name}", revision)))
            for name, revision in (
                ("ours", "head"),
                ("reference", "commandbus_0001"),
                ("raw", "head"),
                ("core", "head"),
            )
        ]
        # On the tables of the first revision, which are those that it was written for; it only wants one column more.
        databases[1].execute("ALTER TABLE commandbus.process ADD COLUMN batch_id uuid")
        for name in _PEERS:
            databases[0].execute(f"CREATE DATABASE {name}")
        urls = {0.0: server.url}
        for delay in options.latency:
            urls[delay] = stack.enter_context(delayed(server.url, delay))
        facts = {
            "date": date,
            "machine": machine(),
            "versions": {"PostgreSQL": settings.pop("server_version"), **versions()},
            "settings": {name: getattr(options, name) for name in ("rounds", "bulk_rounds", "seconds", "tasks", "pool")}
            | settings,
            "load_average": load_average,
            "round_trip_microseconds": {delay: _round_trip(url) for delay, url in urls.items()},
        }
        figures = asyncio.run(_measured(options, databases, urls))
    rows = with_means(figures)
    _write(options, folder, facts, rows)
    console = Console(file=StringIO() if options.check else None, highlight=False)
    console.width = console.width if console.is_terminal else _TABLE_WIDTH
    show(console, facts, rows)
    if options.check:
        print(f"{len(figures)} rows: all sides did the same work. No time was looked at.")
    return 0


def _write(options: Options, folder: Path, facts: Facts, rows: Sequence[Figures]) -> None:
    """Write the figures, the chart and the page; those of a check or of some rows only do not replace the others."""
    results, page = options.results, options.page
    if options.check:
        results, page = folder, Path(copy(page, folder))
    elif options.is_partial:
        return
    results.mkdir(parents=True, exist_ok=True)
    write_figures(rows, results / "figures.csv")
    draw(rows, facts["date"], results / "ratios.svg")
    write_page(facts, rows, page)


def _configured(server: Server, *, durable: bool) -> dict[str, str]:
    """Set the server up for measuring, and return what it says then."""
    with psycopg.connect(driver_url(server.url), autocommit=True) as connection:
        for name, value in {**_SETTINGS, **({} if durable else _NO_DISK)}.items():
            statement = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            connection.execute(statement)
    server.restart()
    with psycopg.connect(driver_url(server.url)) as connection:
        shown = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
        return {name: setting for name, setting in shown if name in {"server_version", "autovacuum", *_NO_DISK}}


def _round_trip(url: URL) -> float:
    """Return the microseconds that the shortest statement takes."""
    times: list[float] = []
    with psycopg.connect(driver_url(url), autocommit=True) as connection:
        for _ in range(_ROUND_TRIPS):
            started = perf_counter()
            connection.execute("SELECT 1")
            times.append(perf_counter() - started)
    return round(median(times) * 1e6, 1)


async def _started_peers(stack: AsyncExitStack, urls: dict[float, URL], pool: int) -> dict[float, list["Peer"]]:
    """Start the peers. DBOS runs without added milliseconds only: it would need a process for each of them."""
    langgraph_database, dbos_database = _PEERS
    peers = {
        delay: [await stack.enter_async_context(langgraph(url.set(database=langgraph_database), pool))]
        for delay, url in urls.items()
    }
    if peers:
        peers[0.0].append(await stack.enter_async_context(dbos(urls[0.0].set(database=dbos_database), pool)))
    return peers


async def _measured(options: Options, databases: Sequence[Database], urls: dict[float, URL]) -> list[Figures]:
    rows, targets = reading_data(options.ended, options.list_sizes)
    modes = [
        Mode("one after another", "alone"),
        Mode(f"{options.tasks} tasks, pool of {options.pool}", "together", options.tasks),
        Mode("on a given connection", "given"),
        *(Mode(f"+{delay:g} ms a round trip", "delayed", delay=delay) for delay in options.latency),
    ]
    wanted = [operation for operation in operations(options.list_sizes) if operation.name in options.only]
    for database in databases:
        database.load(rows)
    async with AsyncExitStack() as stack:
        sides = {
            delay: [
                await stack.enter_async_context(side(database, url.set(database=database.url.database), options.pool))
                for side, database in zip((ours, reference, raw, core), databases, strict=True)
            ]
            for delay, url in urls.items()
        }
        has_step = any(is_step(operation) for operation in wanted)
        peers = await _started_peers(stack, urls if has_step else {}, options.pool)
        cells = [
            Cell(mode, operation, (sides[mode.delay], peers.get(mode.delay, [])), reading, options.seconds)
            for mode in modes
            for operation in wanted
            for reading in [targets.get(operation.name, [])]
        ]
        for number in range(options.rounds + 1 if cells else 0):
            print(f"Round {number} of {options.rounds}" if number else "Warming up", file=sys.stderr)
            for database in databases:
                database.execute("VACUUM (ANALYZE) commandbus.process, commandbus.process_audit")
            for cell in cells:
                await (cell.measure(number) if number else cell.warm_up())
        figures = [cell.figures for cell in cells]
        if BULK in options.only:
            print("In bulk", file=sys.stderr)
            sizes = options.bulk_processes, options.bulk_steps
            figures.append(await measure_bulk(sides[0], *sizes, options.bulk_rounds))
        return figures


if __name__ == "__main__":
    sys.exit(main())
