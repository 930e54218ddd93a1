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
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median, quantiles
from time import perf_counter
from uuid import uuid4

from rich.table import Table
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.many import DOMAIN, FIRST, database_of, print_table
from commandbus_process import (
    JsonObject,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessFilter,
    ProcessRetention,
    ProcessStatus,
)

_LATER_THAN_ALL = FIRST + timedelta(days=36_500)
_PAUSE = 0.01  # seconds between two calls of the same kind
_ALONE = 10.0  # seconds before the purge, and after it
_LONGEST = 600.0  # seconds that the purge may take

Load = defaultdict[str, list[float]]


@dataclass
class _Times:
    """How long the calls took, in seconds, by their names."""

    alone: Load = field(default_factory=lambda: defaultdict(list))
    beside: Load = field(default_factory=lambda: defaultdict(list))
    is_purging: bool = False

    def add(self, name: str, seconds: float) -> None:
        (self.beside if self.is_purging else self.alone)[name].append(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the data, measure, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retention", description=__doc__)
    parser.add_argument("--processes", type=int, default=300_000, metavar="N")
    parser.add_argument("--purge", metavar="URL", help=argparse.SUPPRESS)  # what the other process does
    given = parser.parse_args(arguments)
    if given.purge is not None:
        print(json.dumps(asyncio.run(_purge(given.purge))))
        return 0
    with database_of(given.processes) as url:
        asyncio.run(_measure(url))
    return 0


async def _purge(url: str) -> dict[str, float]:
    engine = create_async_engine(url)
    rows, longest, begun = 0, 0.0, perf_counter()
    last = begun
    async for progress in ProcessRetention(engine).purge(DOMAIN, ended_before=_LATER_THAN_ALL):
        rows = progress.processes + progress.steps
        longest, last = max(longest, perf_counter() - last), perf_counter()
    await engine.dispose()
    return {"rows": rows, "seconds": perf_counter() - begun, "longest": longest}


async def _measure(url: str) -> None:
    engine = create_async_engine(url)
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    wanted = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.WAITING_FOR_REPLY])
    page = await PostgresProcessQueries(engine).page(wanted, limit=1_000)
    processes = await repository.get_by_ids(DOMAIN, [item.process_id for item in page.items])
    read, stepped = itertools.cycle(processes), itertools.cycle(processes.values())

    def step() -> Awaitable[bool]:
        sent = ProcessAuditEntry(step_name="next", command_id=uuid4(), command_type="Command")
        return repository.advance(next(stepped), sent=sent)

    times = _Times()
    async with asyncio.TaskGroup() as group:
        calls = {"get_by_id": lambda: repository.get_by_id(DOMAIN, next(read)), "advance": step}
        load = [group.create_task(_call(times, name, call)) for name, call in calls.items()]
        await asyncio.sleep(_ALONE)
        times.is_purging = True
        purged = await _in_another_process(url)
        times.is_purging = False
        await asyncio.sleep(_ALONE)
        for each in load:
            each.cancel()
    await engine.dispose()
    _report(purged, times)


async def _call(times: _Times, name: str, call: Callable[[], Awaitable[object]]) -> None:
    while True:
        begun = perf_counter()
        await call()
        times.add(name, perf_counter() - begun)
        await asyncio.sleep(_PAUSE)


async def _in_another_process(url: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.retention", "--purge", url]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        told, _ = await asyncio.wait_for(process.communicate(), _LONGEST)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the purge ended with exit code {process.returncode}")
    purged: dict[str, float] = json.loads(told)
    return purged


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
    print_table(table)


def _percentile_99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[98]


if __name__ == "__main__":
    raise SystemExit(main())
