"""Running SQLAlchemy's synchronous half from asyncio, in greenlets that are used again.

SQLAlchemy makes a new greenlet for each call of an asyncio method. With Python's frames that is a piece of memory that
is asked of the operating system, touched for the first time, and given back: 20 µs of the 200 that reading one process
takes. It has no public name for doing otherwise, so this is the one place that knows how it does it: `await_only` looks
for `__sqlalchemy_greenlet_provider__` in the running greenlet, and hands what is to be awaited to its parent.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import greenlet as greenlets  # type: ignore[import-untyped]
from sqlalchemy.util import await_only

ResultT = TypeVar("ResultT")

await_here = await_only
"""Waits for an awaitable, in a function that runs in a greenlet."""

_MOST_IDLE = 100


class _Ended:
    """What a greenlet hands over when it has done its work, instead of something to be awaited."""

    __slots__ = ("error", "result")

    def __init__(self) -> None:
        self.result: object = None
        self.error: BaseException | None = None


class _Idle(threading.local):
    """The greenlets of a thread that have nothing to do: none can go to another thread."""

    def __init__(self) -> None:
        self.workers: list[Any] = []


_IDLE = _Idle()


def _work() -> None:
    """Do one job after the other: what a greenlet runs."""
    this: Any = greenlets.getcurrent()
    ended = _Ended()
    # Jobs come through a switch from the first on: what a greenlet is started with lives as long as it does.
    function, arguments = this.parent.switch()
    while True:
        try:
            ended.result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised where the job came from
            ended.error = error
        del function, arguments  # nothing of the job lives on while the greenlet waits for the next
        function, arguments = this.parent.switch(ended)


async def run_in_greenlet(function: Callable[..., ResultT], *arguments: object) -> ResultT:
    """Run a synchronous function that uses SQLAlchemy on an asyncio driver.

    What it waits for is awaited here, and an error of that, a cancellation too, is raised there.
    """
    idle = _IDLE.workers
    if idle:
        worker: Any = idle.pop()
    else:
        worker = greenlets.greenlet(_work)
        worker.__sqlalchemy_greenlet_provider__ = True
        worker.switch()
    driver: Any = greenlets.getcurrent()
    worker.parent = driver
    worker.gr_context = driver.gr_context
    handed: Any = worker.switch(function, arguments)
    while type(handed) is not _Ended:
        try:
            value: object = await handed
        except BaseException:  # noqa: BLE001 - the function is to see it, and to raise it or another
            handed = worker.throw(*sys.exc_info())
        else:
            handed = worker.switch(value)
    worker.gr_context = None  # else it would keep what the task had in there
    if len(idle) < _MOST_IDLE:
        idle.append(worker)
    result, error = handed.result, handed.error
    handed.result = handed.error = None  # the greenlet refers to it until its next job
    if error is None:
        return cast("ResultT", result)
    try:
        raise error
    finally:
        del error  # else it would refer to this frame, and this frame to it
