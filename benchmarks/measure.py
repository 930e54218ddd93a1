"""The measurements: all sides in turn, in rounds, each with the same work, which is compared afterwards."""

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from statistics import median
from time import perf_counter

from benchmarks.compare import check
from benchmarks.data import Rows, Target, bulk_data, writing_targets
from benchmarks.operations import BULK_GOAL, Call, Mode, Operation
from benchmarks.side import Connection, Side

_WARM_UP_CALLS = 12  # on each connection; psycopg prepares a statement at its sixth use
_FIRST_CALLS = 2  # of each measurement: not timed, and their answers are compared
_FIRST_CALLS_ON_GIVEN = 8  # there one connection makes all of them
_FEWEST_CALLS = 10
_TRIAL_CALLS = 20
_LIMIT = 120  # seconds for what takes a few
_BULK_LIMIT = 1800


@dataclass(slots=True)
class Figures:
    """One row of the table: its goals, and for each side the microseconds of a call in each round."""

    mode: Mode
    name: str
    title: str
    goal: float | None
    floor_goal: float | None
    calls: int = 0
    times: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, side: Side, seconds: float) -> None:
        self.times.setdefault(side.name, []).append(seconds / self.calls * 1e6)

    def ratios(self, other: str) -> list[float]:
        """Return our time over the other side's, round by round."""
        return [ours / theirs for ours, theirs in zip(self.times["ours"], self.times[other], strict=True)]

    def ratio(self, other: str) -> float:
        return median(self.ratios(other))


class Cell:
    """One operation in one mode, on all sides: with its targets, if it reads, and how long a measurement takes."""

    def __init__(
        self, mode: Mode, operation: Operation, sides: Sequence[Side], reading: Sequence[Target], seconds: float
    ) -> None:
        goals = operation.goals
        self.figures = Figures(mode, operation.name, operation.title, getattr(goals, mode.goals), goals.floor)
        self._mode, self._operation, self._sides, self._reading = mode, operation, sides, reading
        self._seconds = seconds
        self._name = f"{operation.title} ({mode.title})"
        self._first = _FIRST_CALLS_ON_GIVEN if mode.goals == "given" else _FIRST_CALLS

    async def warm_up(self) -> None:
        """Make every connection know the statements, and find out how many calls take the time that is wanted.

        Where none is wanted, the fewest calls are made, and the connections stay cold.
        """
        spent = 0.0
        for side in self._sides:
            if self._seconds:
                await self._run(side, _WARM_UP_CALLS * side.pool, tasks=side.pool)
            spent += await self._run(side, _TRIAL_CALLS, self._mode.tasks)
        calls = max(_FEWEST_CALLS, round(self._seconds / spent * len(self._sides) * _TRIAL_CALLS))
        self.figures.calls = -(-calls // self._mode.tasks) * self._mode.tasks

    async def measure(self, number: int) -> None:
        """Measure each side once; another one is the first in each round."""
        for side in _rotated(self._sides, number):
            self.figures.add(side, await self._run(side, self.figures.calls, self._mode.tasks))

    async def _run(self, side: Side, calls: int, tasks: int) -> float:
        """Make the calls, compare what they did with what they had to do, and return the seconds they took."""
        operation, count, where = self._operation, self._first + calls, f"{self._name}, {side.name}"
        async with asyncio.timeout(_LIMIT + 10 * self._seconds):
            if not operation.writes:
                targets = list(islice(cycle(self._reading), count))
                seconds, answers = await self._calls(side, targets, tasks)
                for target, answer in zip(targets, answers, strict=False):
                    check(where, target.answer, answer)
                return seconds
            targets = writing_targets(self._name, count, large_unchanged=operation.name == "update_unchanged")
            side.database.load(_together(operation.before(target) for target in targets))
            seconds, _ = await self._calls(side, targets, tasks)
            _check_rows(where, _together(operation.after(target) for target in targets), side.database.rows(self._name))
            side.database.remove(self._name)
            return seconds

    async def _calls(self, side: Side, targets: Sequence[Target], tasks: int) -> tuple[float, list[object]]:
        calls = await asyncio.gather(*(self._operation.ready(side, target) for target in targets))
        async with side.transaction() if self._mode.goals == "given" and tasks == 1 else nullcontext() as conn:
            answers = [await call(conn) for call in calls[: self._first]]
            return await _seconds(calls[self._first :], tasks, conn), answers


async def measure_bulk(sides: Sequence[Side], processes: int, steps: int, rounds: int) -> Figures:
    """Insert many processes and steps, into empty tables."""
    rows, mode = bulk_data(processes, steps), Mode(f"{processes:,} processes, {steps:,} steps at once", "alone")
    figures = Figures(mode, "bulk", "bulk", BULK_GOAL, None, calls=processes + steps)
    for number in range(rounds):
        for side in _rotated(sides, number):
            side.database.execute("TRUNCATE commandbus.process, commandbus.process_audit")
            own_processes = [side.process(process) for process in rows[0]]
            own_steps = [(step["domain"], step["process_id"], side.entry(step)) for step in rows[1]]
            async with asyncio.timeout(_BULK_LIMIT):
                figures.add(side, await _seconds([partial(side.insert, own_processes, own_steps)], 1, None))
            _check_rows(f"{mode.title}, {side.name}", rows, side.database.rows("bulk"))
    return figures


async def _seconds(calls: Sequence[Call], tasks: int, conn: Connection) -> float:
    async def work(share: Sequence[Call]) -> None:
        for call in share:
            await call(conn)

    gc.collect()
    # Modules and what was prepared are many objects; they are not searched for garbage while the clock runs, nor in the
    # next collection. They go all the same when nothing refers to them.
    gc.freeze()
    started = perf_counter()
    if tasks == 1:
        await work(calls)
    else:
        async with asyncio.TaskGroup() as group:
            for first in range(tasks):
                group.create_task(work(calls[first::tasks]))
    return perf_counter() - started


def _rotated(sides: Sequence[Side], number: int) -> list[Side]:
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]


def _together(each: Iterator[Rows]) -> Rows:
    pairs = list(each)
    return [row for pair in pairs for row in pair[0]], [row for pair in pairs for row in pair[1]]


def _check_rows(where: str, expected: Rows, found: Rows) -> None:
    """Compare both tables, without the time of the update, which is the server's."""
    processes = [[{**row, "updated_at": None} for row in rows[0]] for rows in (expected, found)]
    check(f"{where}, table process", *processes)
    steps = [sorted(rows[1], key=lambda step: (str(step["process_id"]), step["sent_at"])) for rows in (expected, found)]
    check(f"{where}, table process_audit", *steps)
