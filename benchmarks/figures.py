"""What was measured: the rows of the table, and how good they have to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from statistics import median
from typing import NamedTuple

from benchmarks.operations import Mode, Operation
from benchmarks.side import Peer, Side

STEP, MEAN = "step", "mean"
OURS, REFERENCE, CORE, RAW = "ours", "reference", "core", "raw"
OTHERS = (REFERENCE, CORE, RAW, "LangGraph", "DBOS")
"""The other sides, in the order of the table."""

# The highest ratios of our time to the reference's that are good enough, without `conn`: of a step, and of the
# geometric mean of the other operations. By the kind of the mode, and the milliseconds added to a round trip.
_GOALS: Mapping[tuple[str, float], Mapping[str, float]] = {
    ("alone", 0): {STEP: 0.95, MEAN: 1.10},
    ("together", 0): {STEP: 1.10, MEAN: 1.10},
    ("delayed", 1): {STEP: 0.33, MEAN: 0.45},
    ("delayed", 5): {STEP: 0.25, MEAN: 0.38},
}
_CORE_GOAL = 0.50  # the same, to plain SQLAlchemy Core's


class Summary(NamedTuple):
    """The figures of all rounds in three."""

    median: float
    lowest: float
    highest: float


def summary(values: Sequence[float]) -> Summary:
    """Return the median, the lowest and the highest."""
    return Summary(median(values), min(values), max(values))


@dataclass(slots=True)
class Figures:
    """One row of the table: for each side the microseconds of a call in each round."""

    mode: Mode
    name: str
    title: str
    calls: int = 0
    times: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, side: Side | Peer, seconds: float) -> None:
        self.times.setdefault(side.name, []).append(seconds / self.calls * 1e6)

    def others(self) -> list[str]:
        """Return the other sides that were measured."""
        return [other for other in OTHERS if other in self.times]

    def ratios(self, other: str) -> list[float]:
        """Return our time over the other side's, round by round."""
        return [ours / theirs for ours, theirs in zip(self.times[OURS], self.times[other], strict=True)]

    def ratio(self, other: str) -> Summary:
        return summary(self.ratios(other))

    def goal(self, other: str) -> float | None:
        """Return the highest ratio that is good enough; `None` if there is no goal."""
        goals = _GOALS.get((self.mode.kind, self.mode.delay), {})
        if other == REFERENCE:
            return goals.get(self.name)
        return _CORE_GOAL if other == CORE and self.name in goals else None

    def is_met(self, other: str) -> bool | None:
        """Whether the goal is met; `None` if there is none."""
        goal = self.goal(other)
        return None if goal is None else self.ratio(other).median <= goal


class Mean(Figures):
    """The geometric mean of several rows of one mode: in each round, of their ratios."""

    def __init__(self, rows: Sequence[Figures]) -> None:
        super().__init__(rows[0].mode, MEAN, f"geometric mean of the {len(rows)}")
        self._rows = rows

    def others(self) -> list[str]:
        return [other for other in OTHERS if all(other in row.times for row in self._rows)]

    def ratios(self, other: str) -> list[float]:
        each = [row.ratios(other) for row in self._rows]
        return [prod(ratios) ** (1 / len(ratios)) for ratios in zip(*each, strict=True)]


def with_means(rows: Sequence[Figures]) -> list[Figures]:
    """Return the rows, and after those of each mode their geometric mean, without that of a step."""
    result: list[Figures] = []
    for mode, group in groupby(rows, lambda row: row.mode):
        of_mode = list(group)
        single = [row for row in of_mode if row.name != STEP]
        result += of_mode
        if mode.kind != "bulk" and len(single) > 1:
            result.append(Mean(single))
    return result


def is_step(operation: Operation) -> bool:
    """Whether it is what the peers do too."""
    return operation.name == STEP
