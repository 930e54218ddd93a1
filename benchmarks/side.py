"""What each side of the comparison consists of."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.data import Columns, Target
from benchmarks.database import Database

CONNECTION_TIMEOUT = 30  # seconds

Process: TypeAlias = Any
Entry: TypeAlias = Any
Connection: TypeAlias = Any
"""Each side has types of its own for these, and the reference declares none."""


def _change(process: Process, target: Target) -> Process:
    process.current_step = target.changed["current_step"]
    process.state["attempt"] = target.changed["state"]["attempt"]
    return process


@dataclass(frozen=True, slots=True)
class Side:
    """One way to keep processes in PostgreSQL.

    Attributes:
        name: What the table calls it.
        database: Its database.
        pool: How many connections it has.
        repository: Its methods, which have the same names and arguments on all sides.
        transaction: Gives a connection in an open transaction, which is committed in the end.
        process: Makes its own object of a row.
        entry: The same for a step.
        status: The same for a status.
        advance: Records a reply, logs the following step and updates the process, or does nothing of it.
        insert: Inserts many processes, and then many steps of them; no connection is given.
        change: Changes a process that was read into what the target says.
    """

    name: str
    database: Database
    pool: int
    repository: Any
    transaction: Callable[[], AbstractAsyncContextManager[Connection]]
    process: Callable[[Columns], Process]
    entry: Callable[[Columns], Entry]
    status: Callable[[str], object]
    advance: Callable[..., Awaitable[object]]
    insert: Callable[[list[Process], list[tuple[Any, Any, Entry]], None], Awaitable[None]]
    change: Callable[[Process, Target], Process] = _change

    async def changed(self, target: Target) -> Process:
        """Read the target's process, as an application would, and change it."""
        process = await self.repository.get_by_id(*target.key)
        return self.change(process, target)
