"""Cancelling what is done with the repository, in the middle."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import asynccontextmanager
from typing import Any


class Cancelled(Awaitable[None]):
    """An operation that cancels, half-way, the task that awaits it.

    Waits are counted, not timed. So each of them is met, on a computer of any speed.

    Args:
        operation: What is done.
        point: The number of the wait at which it is cancelled; 0 is never.
        delay: How many turns of the event loop later. Meanwhile, what it waits for may come.
    """

    def __init__(self, operation: Awaitable[None], point: int, delay: int) -> None:
        self._operation = operation
        self._point = point
        self._delay = delay
        self.waits = 0

    def __await__(self) -> Generator[object, object, None]:
        steps = self._operation.__await__()
        error: BaseException | None = None
        while True:
            try:
                waiting_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self._point:
                task = asyncio.current_task()
                assert task is not None
                _cancel(task, self._delay)
            error = None
            try:
                yield waiting_for
            except BaseException as thrown:  # noqa: BLE001 - it is the operation's
                error = thrown


def _cancel(task: asyncio.Task[None], delay: int) -> None:
    if delay == 0:
        task.cancel()
    else:
        asyncio.get_running_loop().call_soon(_cancel, task, delay - 1)


async def completed(operation: Awaitable[None]) -> None:
    """What `create_task` takes: it wants a coroutine, and not any awaitable."""
    await operation


@asynccontextmanager
async def no_task_is_left() -> AsyncGenerator[None]:
    """Fails if what was done inside is still running in some task, or begins one afterwards.

    A generator that was not closed does that when it is collected.
    """
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before
    begun: list[object] = []

    def note(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        begun.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(note)
    try:
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
    finally:
        loop.set_task_factory(None)
    assert begun == []
