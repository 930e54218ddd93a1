"""The rows of the table: what is measured, under which circumstances, and how good it has to be."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from benchmarks.data import TRAIL_LENGTH, Rows, Target
from benchmarks.side import Connection, Side

Call: TypeAlias = Callable[[Connection], Awaitable[object]]
"""An operation that is ready to be timed. Its argument is the connection that it is given, or `None`."""


class Goals(NamedTuple):
    """The highest ratios of our time to the reference's that are good enough, and of ours to raw psycopg's."""

    alone: float
    together: float
    given: float | None
    delayed: float
    floor: float | None


_WRITING_ONE = Goals(0.80, 1.00, 1.50, 0.45, 1.4)
_READING_ONE = Goals(0.80, 1.25, 1.50, 0.45, 1.4)
_READING_TRAIL = Goals(0.80, 1.00, None, 0.45, 1.0)
_READING_LIST = Goals(0.80, 0.80, 0.90, 0.45, 1.0)
_STEP = Goals(0.60, 0.75, None, 0.30, None)
BULK_GOAL = 0.12
_LONG_LIST = 100  # rows; from here on the goals of lists apply


@dataclass(frozen=True, slots=True)
class Mode:
    """A group of rows: whose goals apply, how many tasks make the calls, and the milliseconds added to a round trip."""

    title: str
    goals: Literal["alone", "together", "given", "delayed"]
    tasks: int = 1
    delay: float = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """What is measured: its name as `--only` takes it, its title as the table shows it, and what is good enough."""

    name: str
    title: str
    goals: Goals

    @property
    def writes(self) -> bool:
        return self in _WRITING

    async def ready(self, side: Side, target: Target) -> Call:
        """Make a call ready, with everything that an application would have done before."""
        repository = side.repository
        match self.name:
            case "save":
                call = partial(repository.save, side.process(target.process))
            case "update" | "update_unchanged":
                call = partial(repository.update, await side.changed(target))
            case "log_step":
                call = partial(repository.log_step, *target.key, side.entry(target.sent))
            case "update_step_reply":
                command_id, reply = target.sent["command_id"], side.entry(target.replied)
                call = partial(repository.update_step_reply, *target.key, command_id, reply)
            case "step":
                reply, following = side.entry(target.replied), side.entry(target.following)
                call = partial(side.advance, await side.changed(target), reply=reply, sent=following)
            case "get_by_id" | "get_completed_steps" | "get_audit_trail":
                call = partial(getattr(repository, self.name), *target.key)
            case _:
                statuses = [side.status(target.process["status"])]
                call = partial(repository.find_by_status, target.process["domain"], statuses)
        return call

    def before(self, target: Target) -> Rows:
        """Return the rows that a writing call needs."""
        is_sent = self.name in {"update_step_reply", "step"}
        return [] if self.name == "save" else [target.process], target.steps(target.sent) if is_sent else []

    def after(self, target: Target) -> Rows:
        """Return the rows that a writing call leaves behind."""
        match self.name:
            case "update" | "update_unchanged":
                return [target.changed], []
            case "log_step":
                return [target.process], target.steps(target.sent)
            case "update_step_reply":
                return [target.process], target.steps(target.replied)
            case "step":
                return [target.changed], target.steps(target.replied, target.following)
            case _:
                return [target.process], []


_WRITING = [
    Operation("save", "save", _WRITING_ONE),
    Operation("update", "update", _WRITING_ONE),
    Operation("update_unchanged", "update, 10 kB state unchanged", _WRITING_ONE),
    Operation("log_step", "log_step", _WRITING_ONE),
    Operation("update_step_reply", "update_step_reply", _WRITING_ONE),
    Operation("step", "step: reply, next step, state", _STEP),
]
_READING = [
    Operation("get_by_id", "get_by_id", _READING_ONE),
    Operation("get_completed_steps", f"get_completed_steps of {TRAIL_LENGTH}", _READING_ONE),
    Operation("get_audit_trail", f"get_audit_trail of {TRAIL_LENGTH}", _READING_TRAIL),
]


def operations(list_sizes: Sequence[int]) -> list[Operation]:
    """Return all operations, with a `find_by_status` for each size of a list."""
    finding = [
        Operation(
            f"find_by_status_{size}",
            f"find_by_status of {size:,}",
            _READING_LIST if size >= _LONG_LIST else _READING_ONE,
        )
        for size in list_sizes
    ]
    return [*_WRITING, *_READING, *finding]
