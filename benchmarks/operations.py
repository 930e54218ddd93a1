"""The rows of the table: what is measured, under which circumstances, and how good it has to be."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from benchmarks.data import TRAIL_LENGTH, Rows, Target
from benchmarks.side import Call, Side

Kind: TypeAlias = Literal["alone", "together", "given", "delayed", "bulk"]


@dataclass(frozen=True, slots=True)
class Mode:
    """A group of rows: how the calls are made, by how many tasks, and the milliseconds added to a round trip."""

    title: str
    kind: Kind
    tasks: int = 1
    delay: float = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """What is measured: its name as `--only` takes it, and its title as the table shows it."""

    name: str
    title: str

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
    Operation("save", "save"),
    Operation("update", "update"),
    Operation("update_unchanged", "update, 10 kB state unchanged"),
    Operation("log_step", "log_step"),
    Operation("update_step_reply", "update_step_reply"),
    Operation("step", "step: reply, next step, state"),
]
_READING = [
    Operation("get_by_id", "get_by_id"),
    Operation("get_completed_steps", f"get_completed_steps of {TRAIL_LENGTH}"),
    Operation("get_audit_trail", f"get_audit_trail of {TRAIL_LENGTH}"),
]


def operations(list_sizes: Sequence[int]) -> list[Operation]:
    """Return all operations, with a `find_by_status` for each size of a list."""
    finding = [Operation(f"find_by_status_{size}", f"find_by_status of {size:,}") for size in list_sizes]
    return [*_WRITING, *_READING, *finding]
