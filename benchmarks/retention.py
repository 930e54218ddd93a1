"""Measure a purge beside a running load, on an embedded PostgreSQL of its own: `make bench-purge`.

The purge runs in a process of its own, as in life. Meanwhile this process calls `get_by_id` and `advance` at a steady
rate, and compares how long they take with and without the purge.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from uuid import UUID, uuid4

from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.many import DOMAIN, FIRST, database_of
from commandbus_process import (
    JsonObject,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessFilter,
    ProcessMetadata,
    ProcessRetention,
    ProcessStatus,
)

_PAUSE = 0.01  # seconds between two calls of the same kind
_ALONE = 10.0  # seconds before the purge, and after it
_LONGEST = 600.0  # seconds that the purge may take

Load = dict[str, list[float]]


@dataclass
class _Times:
    """How long the calls took, in seconds, by their names."""

    alone: Load = field(default_factory=lambda: {"get_by_id": [], "advance": []})
    beside: Load = field(default_factory=lambda: {"get_by_id": [], "advance": []})
    now: Load = field(default_factory=dict[str, list[float]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the data, measure, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retention", description=__doc__)
    parser.add_argument("--processes", type=int, default=300_000, metavar="N")
    parser.add_argument("--purge", metavar="URL", help=argparse.SUPPRESS)  # what the other process does
    given = parser.parse_args(arguments)
    if given.purge is not None:
        print(json.dumps(asyncio.run(_purge(given.purge, given.processes))))
        return 0
    size: int = given.processes
    with database_of(size) as url:
        asyncio.run(_measure(url, size))
    return 0


async def _purge(url: str, size: int) -> dict[str, float]:
    engine = create_async_engine(url)
    rows, longest, begun = 0, 0.0, perf_counter()
    last = begun
    ended_before = FIRST + timedelta(seconds=size) + timedelta(days=1)
    async for progress in ProcessRetention(engine).purge(DOMAIN, ended_before=ended_before):
        rows = progress.processes + progress.steps
        longest, last = max(longest, perf_counter() - last), perf_counter()
    await engine.dispose()
    return {"rows": rows, "seconds": perf_counter() - begun, "longest": longest}


async def _measure(url: str, size: int) -> None:
    engine = create_async_engine(url)
    times = _Times()
    times.now = times.alone
    async with asyncio.TaskGroup() as group:
        load = [group.create_task(each) for each in (_reads(engine, times), _steps(engine, times))]
        await asyncio.sleep(_ALONE)
        times.now = times.beside
        purged = await _in_another_process(url, size)
        times.now = times.alone
        await asyncio.sleep(_ALONE)
        for each in load:
            each.cancel()
    await engine.dispose()
    _report(purged, times)


async def _in_another_process(url: str, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.retention", "--purge", url, "--processes", str(size)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        told, _ = await asyncio.wait_for(process.communicate(), _LONGEST)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError(f"the purge ended with exit code {process.returncode}")
    purged: dict[str, float] = json.loads(told)
    return purged


async def _calls(times: _Times, name: str, call: Callable[[], Awaitable[Any]]) -> None:
    while True:
        begun = perf_counter()
        await call()
        times.now[name].append(perf_counter() - begun)
        await asyncio.sleep(_PAUSE)


async def _open(engine: AsyncEngine, limit: int) -> list[UUID]:
    wanted = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.WAITING_FOR_REPLY])
    page = await PostgresProcessQueries(engine).page(wanted, limit=limit)
    return [item.process_id for item in page.items]


async def _reads(engine: AsyncEngine, times: _Times) -> None:
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    ids = itertools.cycle(await _open(engine, 1_000))
    await _calls(times, "get_by_id", lambda: repository.get_by_id(DOMAIN, next(ids)))


async def _steps(engine: AsyncEngine, times: _Times) -> None:
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    found = await repository.get_by_ids(DOMAIN, await _open(engine, 1_000))
    processes = itertools.cycle(found.values())

    def step(process: ProcessMetadata[JsonObject]) -> Awaitable[bool]:
        sent = ProcessAuditEntry(step_name="next", command_id=uuid4(), command_type="Command")
        return repository.advance(process, sent=sent)

    await _calls(times, "advance", lambda: step(next(processes)))


def _report(purged: dict[str, float], times: _Times) -> None:
    print(
        f"purge: {purged['rows']:,.0f} rows in {purged['seconds']:.1f} s, {purged['rows'] / purged['seconds']:,.0f} a "
        f"second, longest batch {purged['longest']:.2f} s"
    )
    table = Table("Call", "median alone", "beside", "ratio", "99th percentile alone", "beside", "ratio")
    for name, alone in times.alone.items():
        beside = times.beside[name]
        cells: list[str] = []
        for measure in (median, _percentile_99):
            before, after = measure(alone) * 1_000, measure(beside) * 1_000
            cells += [f"{before:.2f} ms", f"{after:.2f} ms", f"{after / before:.2f}"]
        table.add_row(f"{name} ({len(alone)}, {len(beside)})", *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _percentile_99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[98]


if __name__ == "__main__":
    raise SystemExit(main())
