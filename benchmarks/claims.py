"""Measure workers that share a backlog, claiming by lock and by version: `python -m benchmarks.claims`.

On an embedded PostgreSQL of its own. Each worker claims ten processes, marks them and commits, until none is left. A
transaction can be kept open for a while, as by work that is done in it.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Literal, TypeAlias
from uuid import UUID, uuid4

import psycopg
from rich.table import Table
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.database import driver_url
from benchmarks.many import DOMAIN, database_of, print_table
from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata, ProcessStatus

_LIMIT = 10
_Way: TypeAlias = Literal["lock", "version"]
_WAYS: tuple[_Way, _Way] = ("lock", "version")
_PENDING = [ProcessStatus.PENDING]


@dataclass
class Drained:
    """One backlog, after it was drained."""

    seconds: float
    calls: list[float]

    def figures(self, processes: int) -> list[str]:
        """Return the figures as texts: processes a second, and how long a call of `claim` took."""
        milliseconds = [1000 * each for each in self.calls]
        return [f"{processes / self.seconds:,.0f}", f"{median(milliseconds):.1f}", f"{max(milliseconds):.0f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("--processes", type=int, default=1_000, metavar="N", help="the size of each backlog")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--open", type=float, nargs="+", default=[0.0, 20.0], metavar="MS")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parsed = parser.parse_args(arguments)
    asyncio.run(_all(parsed.processes, parsed.workers, parsed.open, parsed.rounds))
    return 0


async def _all(processes: int, workers: Sequence[int], kept_open: Sequence[float], rounds: int) -> None:
    table = Table("Open for", "Workers", "Claims by", "Processes a second", "A claim, ms", "The longest, ms")
    with database_of(0) as url:
        engine = create_async_engine(url, pool_size=max(workers), max_overflow=0)
        try:
            await _drain(engine, "lock", 100, 4, 0)  # opens the connections
            for milliseconds in kept_open:
                for count in workers:
                    found: dict[_Way, list[Drained]] = {way: [] for way in _WAYS}
                    for number in range(rounds):
                        ways: Sequence[_Way] = _WAYS if number % 2 else _WAYS[::-1]
                        for way in ways:
                            _empty(url)
                            found[way].append(await _drain(engine, way, processes, count, milliseconds / 1000))
                    for by, runs in found.items():
                        middle = sorted(runs, key=lambda each: each.seconds)[len(runs) // 2]
                        table.add_row(f"{milliseconds:.0f} ms", str(count), by, *middle.figures(processes))
        finally:
            await engine.dispose()
    print_table(table)


def _empty(url: str) -> None:
    with psycopg.connect(driver_url(make_url(url)), autocommit=True) as connection:
        connection.execute("TRUNCATE commandbus.process, commandbus.process_audit")
        connection.execute("ANALYZE commandbus.process")


async def _drain(engine: AsyncEngine, by: _Way, processes: int, workers: int, kept_open: float) -> Drained:
    repository = PostgresProcessRepository(engine)
    await repository.save_many(
        ProcessMetadata[JsonObject](domain=DOMAIN, process_id=uuid4(), process_type="order", state={"number": number})
        for number in range(processes)
    )
    claimed: list[UUID] = []
    calls: list[float] = []

    async def work() -> None:
        while True:
            async with engine.begin() as conn:
                start = perf_counter()
                found = await repository.claim(DOMAIN, _PENDING, conn, limit=_LIMIT, by=by)
                calls.append(perf_counter() - start)
                for process in found:
                    process.status = ProcessStatus.IN_PROGRESS
                    await repository.update(process, conn)
                if found and kept_open:
                    await asyncio.sleep(kept_open)
            claimed.extend(process.process_id for process in found)
            if not found and len(claimed) == processes:
                return
            if not found:
                await asyncio.sleep(0.005)  # the last ones are still in the hands of others

    start = perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    seconds = perf_counter() - start
    assert len(set(claimed)) == processes, "a process was claimed twice, or lost"
    return Drained(seconds, calls)


if __name__ == "__main__":
    raise SystemExit(main())
