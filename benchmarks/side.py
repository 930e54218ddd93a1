"""What each side of the comparison consists of."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

from benchmarks.data import Columns, Target
from benchmarks.database import Database

CONNECTION_TIMEOUT = 30  # seconds

Process: TypeAlias = Any
Entry: TypeAlias = Any
Connection: TypeAlias = Any
"""Each side has types of its own for these, and the reference declares none."""

Call: TypeAlias = Callable[[Connection], Awaitable[object]]
"""An operation that is ready to be timed. Its argument is the connection that it is given, or `None`."""


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


@dataclass(frozen=True, slots=True)
class Peer:
    """Something else that keeps the state of processes in PostgreSQL, in tables of its own. It only takes steps.

    Attributes:
        name: What the table calls it.
        run: Prepares the targets, takes the step of each, compares what is stored with what it has to be, and returns
            the seconds. Its arguments: where it is called from, the targets, how many of them are not timed, and how
            many tasks share the others.
    """

    name: str
    run: Callable[[str, Sequence[Target], int, int], Awaitable[float]]


def reply(target: Target) -> Columns:
    """Return the reply of a step, as a peer stores it: all that our table has, as JSON."""
    return {
        "command_id": str(target.replied["command_id"]),
        "outcome": target.replied["reply_outcome"],
        "data": target.replied["reply_data"],
        "received_at": target.replied["received_at"].isoformat(),
    }


def command(target: Target) -> Columns:
    """Return the command that a step sends, as a peer stores it."""
    return {
        "step_name": target.following["step_name"],
        "command_id": str(target.following["command_id"]),
        "command_type": target.following["command_type"],
        "data": target.following["command_data"],
        "sent_at": target.following["sent_at"].isoformat(),
    }


async def timed(calls: Sequence[Call], tasks: int, conn: Connection) -> float:
    """Make the calls, shared by some tasks, and return the seconds that they took."""

    async def work(share: Sequence[Call]) -> None:
        for call in share:
            await call(conn)

    gc.collect()
    # Modules and what was prepared are many objects. They are not searched for garbage while the clock runs, nor in the
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
