"""After a failing call, nothing of the library refers to the caller's items: no garbage collector is needed."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from commandbus_process import (
    InvalidInputError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessLockedError,
    ProcessMetadata,
    ProcessNotFoundError,
    StepAlreadyLoggedError,
)
from tests.support.bulk_failures import CallersError
from tests.support.items import (
    BATCH,
    DOMAIN,
    bad_entry,
    bad_process,
    for_process,
    new_entry,
    new_process,
    new_processes,
)
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository[Any]
Items = AsyncGenerator[Any]
Given = Callable[[list[Any]], Items]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Held:
    """What the caller's generator holds, a connection for example."""


class Watched:
    """Makes generators, and counts how many of them, and of their items, are still alive."""

    def __init__(self) -> None:
        self._alive: list[weakref.ref[object]] = []

    def generator(self, items: list[Any]) -> Items:
        made = self._items(items)
        self._alive.append(weakref.ref(made))
        return made

    async def _items(self, items: list[Any]) -> Items:
        held = Held()
        self._alive.append(weakref.ref(held))
        for item in items:
            if item is CallersError:
                raise CallersError
            yield item
        del held

    def iterator(self, items: list[Any]) -> Iterator[Any]:
        made = self._sync_items(items)
        self._alive.append(weakref.ref(made))
        return made

    def _sync_items(self, items: list[Any]) -> Iterator[Any]:
        held = Held()
        self._alive.append(weakref.ref(held))
        for item in items:
            if item is CallersError:
                raise CallersError
            yield item
        del held

    async def are_gone(self) -> bool:
        for _ in range(5):  # the event loop closes an asynchronous generator in a task of its own
            await asyncio.sleep(0)
        return bool(self._alive) and not any(each() for each in self._alive)


@pytest.fixture
def watched() -> Watched:
    return Watched()


THERE = new_process()
LOGGED = new_entry()
KEY = DOMAIN, THERE.process_id
Failure = tuple[
    type[Exception], Callable[[Repository, AsyncConnection | None, Callable[[list[Any]], Any]], Awaitable[int]]
]
FAILURES: dict[str, Failure] = {
    "a taken id": (
        ProcessAlreadyExistsError,
        lambda repository, conn, given: repository.save_many(given([THERE.model_copy()]), conn),
    ),
    "two taken ids in a third batch": (
        ProcessAlreadyExistsError,
        lambda repository, conn, given: repository.save_many(
            given([*new_processes(2 * BATCH), THERE.model_copy(), *(2 * [new_process(uuid4())])]), conn
        ),
    ),
    "another entry": (
        StepAlreadyLoggedError,
        lambda repository, conn, given: repository.log_many(
            given([*for_process(*KEY, [LOGGED.model_copy(update={"step_name": "other"}), new_entry()])]), conn
        ),
    ),
    "unknown processes": (
        ProcessNotFoundError,
        lambda repository, conn, given: repository.log_many(
            given([(DOMAIN, uuid4(), new_entry()) for _ in range(3)]), conn
        ),
    ),
    "an item that is refused": (
        InvalidInputError,
        lambda repository, conn, given: repository.save_many(
            given([*new_processes(BATCH + 1), bad_process(domain="")]), conn
        ),
    ),
    "an entry that is refused": (
        InvalidInputError,
        lambda repository, conn, given: repository.log_many(
            given([*for_process(*KEY, [bad_entry(command_type="")]), 1]), conn
        ),
    ),
    "the caller's own error": (
        CallersError,
        lambda repository, conn, given: repository.save_many(given([*new_processes(BATCH + 1), CallersError]), conn),
    ),
}


@pytest.mark.parametrize("form", ["generator", "async generator"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_the_callers_generator_goes_with_the_error(
    engine: AsyncEngine, conn: AsyncConnection | None, watched: Watched, failure: str, form: str
) -> None:
    repository: Repository = PostgresProcessRepository(engine)
    await repository.save(THERE.model_copy(), conn)
    await repository.log_step(*KEY, LOGGED, conn)
    error, attempt = FAILURES[failure]
    with pytest.raises(error):
        await attempt(repository, conn, watched.generator if form == "async generator" else watched.iterator)
    assert await watched.are_gone()


async def attempt_with_a_lock(repository: Repository, watched: Watched, conn: AsyncConnection | None) -> None:
    await repository.save_many(watched.generator([THERE.model_copy(), *new_processes(BATCH)]), conn)


async def test_it_goes_with_the_servers_error(
    engine: AsyncEngine, conn: AsyncConnection | None, watched: Watched
) -> None:
    repository: Repository = PostgresProcessRepository(engine)
    limited = create_async_engine(engine.url, connect_args={"options": "-clock_timeout=200"})
    async with engine.connect() as holder:
        await repository.save(THERE.model_copy(), holder)
        if conn is not None:
            await conn.execute(text("SET LOCAL lock_timeout = '200ms'"))
        with pytest.raises(ProcessLockedError):
            await attempt_with_a_lock(
                repository if conn is not None else PostgresProcessRepository(limited), watched, conn
            )
        await holder.rollback()
    assert await watched.are_gone()
    await limited.dispose()


@pytest.mark.parametrize("how", ["cancelled", "terminated"])
async def test_it_goes_with_a_call_that_was_cut_off(
    engine: AsyncEngine, administrator: AsyncEngine, watched: Watched, how: str
) -> None:
    repository: Repository = PostgresProcessRepository(engine)
    async with engine.connect() as holder:
        await repository.save(THERE.model_copy(), holder)
        task = asyncio.create_task(attempt_with_a_lock(repository, watched, None))
        await is_waiting_for_a_lock(administrator)
        if how == "cancelled":
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            async with administrator.connect() as conn:
                await conn.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    )
                )
            with pytest.raises(DBAPIError):
                await task
        del task
        await holder.rollback()
    assert await watched.are_gone()


async def test_conflicts_do_not_exhaust_the_pool(engine: AsyncEngine) -> None:
    """The generator reads its items from a connection of the same pool, as an import from another table would."""
    pooled = create_async_engine(engine.url, pool_size=5, max_overflow=0, pool_timeout=5)
    repository: Repository = PostgresProcessRepository(pooled)
    await repository.save(THERE.model_copy())

    async def copies() -> AsyncIterator[ProcessMetadata]:
        async with pooled.connect() as conn:
            result = await conn.stream(text("SELECT process_id FROM commandbus.process"))
            async for (process_id,) in result:
                yield new_process(process_id)
            for process in new_processes(5 * BATCH):
                yield process

    for _ in range(8):
        with pytest.raises(ProcessAlreadyExistsError):
            await repository.save_many(copies())
        for _ in range(100):  # the event loop closes the generator, and the server answers
            await asyncio.sleep(0.001)
            if checked_out(pooled) == 0:
                break
    assert checked_out(pooled) == 0
    await pooled.dispose()


def checked_out(engine: AsyncEngine) -> int:
    assert isinstance(engine.pool, QueuePool)
    return engine.pool.checkedout()


class Opened:
    """Items whose `__aiter__` makes a generator: the library opened it, so the library closes it."""

    def __init__(self) -> None:
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[ProcessMetadata]:
        try:
            for process in (THERE.model_copy(), *new_processes(5 * BATCH)):
                yield process
        finally:
            self.is_closed = True


async def test_a_generator_that_the_library_opened_is_closed(engine: AsyncEngine, conn: AsyncConnection | None) -> None:
    repository: Repository = PostgresProcessRepository(engine)
    await repository.save(THERE.model_copy(), conn)
    items = Opened()
    with pytest.raises(ProcessAlreadyExistsError):
        await repository.save_many(items, conn)
    assert items.is_closed


async def test_the_callers_own_generator_stays_open(engine: AsyncEngine, conn: AsyncConnection | None) -> None:
    repository: Repository = PostgresProcessRepository(engine)
    await repository.save(THERE.model_copy(), conn)
    last = new_process()

    async def processes() -> AsyncIterator[ProcessMetadata]:
        yield bad_process(domain="")
        yield last

    items = processes()
    with pytest.raises(InvalidInputError):
        await repository.save_many(items, conn)
    assert [each async for each in items] == [last]
