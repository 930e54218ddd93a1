"""SQLAlchemy's synchronous half runs in greenlets that are used again, of which nobody notices anything."""

import asyncio
import gc
import weakref
from contextvars import ContextVar
from functools import partial

from commandbus_process._greenlets import await_here, run_in_greenlet


class Thing:
    """Something that can be looked for after it has gone."""


async def test_nothing_of_a_job_lives_on_in_an_idle_greenlet() -> None:
    def job(argument: Thing, *, is_wanted: bool) -> Thing:
        if not is_wanted:
            raise ValueError(argument)
        return argument

    gone: list[weakref.ref[Thing]] = []
    for is_wanted in (True, False, True):
        thing = Thing()
        gone.append(weakref.ref(thing))
        try:
            await run_in_greenlet(partial(job, is_wanted=is_wanted), thing)
        except ValueError:
            assert not is_wanted
        del thing
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


async def test_each_job_has_the_context_of_its_task() -> None:
    variable = ContextVar("variable", default=0)
    arrived = asyncio.Barrier(3)

    def job(number: int) -> int:
        variable.set(number)
        await_here(arrived.wait())  # all of them are under way
        return variable.get()

    async def task(number: int) -> tuple[int, int]:
        return await run_in_greenlet(job, number), variable.get()

    for _ in range(2):  # in new greenlets, and in the same ones again
        assert await asyncio.gather(*map(task, range(3))) == [(number, number) for number in range(3)]
    assert variable.get() == 0


async def test_nothing_of_a_task_lives_on_in_an_idle_greenlet() -> None:
    variable = ContextVar[Thing]("variable")

    async def task() -> weakref.ref[Thing]:
        variable.set(Thing())
        return weakref.ref(await run_in_greenlet(variable.get))

    reference = await asyncio.create_task(task())
    await asyncio.sleep(0)  # the task itself ends
    gc.collect()
    assert reference() is None
