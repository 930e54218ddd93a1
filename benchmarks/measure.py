"""The measurements: all sides in turn, in rounds, each with the same work, which is compared afterwards."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import cycle, islice
from typing import TypeVar

from benchmarks.compare import check
from benchmarks.data import Rows, Target, bulk_data, writing_targets
from benchmarks.figures import Figures, is_step
from benchmarks.operations import Mode, Operation
from benchmarks.side import Peer, Side, timed

# On each connection. psycopg prepares a statement at its sixth use; the server plans it anew five times more.
_WARM_UP_CALLS = 12
_FIRST_CALLS = 2  # of each measurement: not timed, and their answers are compared
_FIRST_CALLS_ON_GIVEN = 8  # there one connection makes all of them
_FEWEST_CALLS = 10
_TRIAL_CALLS = 20
_LIMIT = 120  # seconds for what takes a few
_BULK_LIMIT = 1800

AnyT = TypeVar("AnyT")


class Cell:
    """One operation in one mode, on all sides: with its targets, if it reads, and how long a measurement takes."""

    def __init__(
        self,
        mode: Mode,
        operation: Operation,
        sides: tuple[Sequence[Side], Sequence[Peer]],
        reading: Sequence[Target],
        seconds: float,
    ) -> None:
        self.figures = Figures(mode, operation.name, operation.title)
        self._mode, self._operation, self._reading = mode, operation, reading
        # What peers keep is theirs: there is no connection that they could be given, with which rows of ours change.
        self._sides: list[Side | Peer] = [*sides[0], *(sides[1] if is_step(operation) and mode.kind != "given" else ())]
        self._seconds = seconds
        self._name = f"{operation.title} ({mode.title})"
        self._first = _FIRST_CALLS_ON_GIVEN if mode.kind == "given" else _FIRST_CALLS

    async def warm_up(self) -> None:
        """Make every connection know the statements, and find out how many calls take the time that is wanted.

        If no time is wanted, the fewest calls are made, and the connections stay cold.
        """
        calls = _FEWEST_CALLS
        if self._seconds:
            spent = 0.0
            for side in self._sides:
                tasks = side.pool if isinstance(side, Side) else self._mode.tasks
                await self._run(side, _WARM_UP_CALLS * tasks, tasks)
                spent += await self._run(side, _TRIAL_CALLS, self._mode.tasks)
            calls = max(calls, round(self._seconds / spent * len(self._sides) * _TRIAL_CALLS))
        self.figures.calls = -(-calls // self._mode.tasks) * self._mode.tasks

    async def measure(self, number: int) -> None:
        """Measure each side once; another one is the first in each round."""
        for side in _rotated(self._sides, number):
            self.figures.add(side, await self._run(side, self.figures.calls, self._mode.tasks))

    async def _run(self, side: Side | Peer, calls: int, tasks: int) -> float:
        """Make the calls, compare what they did with what they had to do, and return the seconds they took."""
        operation, count, where = self._operation, self._first + calls, f"{self._name}, {side.name}"
        async with asyncio.timeout(_LIMIT + 10 * self._seconds):
            if isinstance(side, Peer):
                return await side.run(where, writing_targets(self._name, count), self._first, tasks)
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
        async with side.transaction() if self._mode.kind == "given" and tasks == 1 else nullcontext() as conn:
            answers = [await call(conn) for call in calls[: self._first]]
            return await timed(calls[self._first :], tasks, conn), answers


async def measure_bulk(sides: Sequence[Side], processes: int, steps: int, rounds: int) -> Figures:
    """Insert many processes and steps, into empty tables."""
    rows, mode = bulk_data(processes, steps), Mode(f"{processes:,} processes, {steps:,} steps at once", "bulk")
    figures = Figures(mode, "bulk", "in bulk, for one row", calls=processes + steps)
    for number in range(rounds):
        for side in _rotated(sides, number):
            side.database.execute("TRUNCATE commandbus.process, commandbus.process_audit")
            own_processes = [side.process(process) for process in rows[0]]
            own_steps = [(step["domain"], step["process_id"], side.entry(step)) for step in rows[1]]
            async with asyncio.timeout(_BULK_LIMIT):
                figures.add(side, await timed([partial(side.insert, own_processes, own_steps)], 1, None))
            _check_rows(f"{mode.title}, {side.name}", rows, side.database.rows("bulk"))
    return figures


def _rotated(sides: Sequence[AnyT], number: int) -> list[AnyT]:
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
