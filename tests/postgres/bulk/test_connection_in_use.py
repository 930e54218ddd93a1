"""While a bulk call has its savepoint open on the caller's connection, no other task's call may run in it.

What such a call wrote would be gone after ROLLBACK TO SAVEPOINT, though it returned.
"""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import InvalidInputError, PostgresProcessRepository, ProcessMetadata, ProcessStatus
from commandbus_process.postgres._transaction import check_not_in_use, savepoint_open
from tests.support.items import (
    DOMAIN,
    bad_process,
    for_process,
    new_entries,
    new_entry,
    new_process,
    new_processes,
    numbers,
)

Repository = PostgresProcessRepository[Any]


class Paused:
    """Items that stop before the last one until they may go on."""

    def __init__(self, last: ProcessMetadata) -> None:
        self.has_begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self._last = last

    async def items(self) -> AsyncGenerator[ProcessMetadata]:
        yield new_process()
        self.has_begun.set()
        await self.may_go_on.wait()
        yield self._last


@pytest.fixture
async def there(repository: Repository, process: ProcessMetadata) -> ProcessMetadata:
    await repository.save(process)
    return process


async def update(repository: Repository, process: ProcessMetadata, conn: AsyncConnection) -> None:
    process.status = ProcessStatus.IN_PROGRESS
    await repository.update(process, conn)


async def save(repository: Repository, _process: ProcessMetadata, conn: AsyncConnection) -> None:
    await repository.save(new_process(), conn)


async def log_step(repository: Repository, process: ProcessMetadata, conn: AsyncConnection) -> None:
    await repository.log_step(DOMAIN, process.process_id, new_entry(), conn)


async def advance(repository: Repository, process: ProcessMetadata, conn: AsyncConnection) -> None:
    await repository.advance(process, conn, sent=new_entry())


async def save_many(repository: Repository, _process: ProcessMetadata, conn: AsyncConnection) -> None:
    await repository.save_many(new_processes(2), conn)


async def log_many(repository: Repository, process: ProcessMetadata, conn: AsyncConnection) -> None:
    await repository.log_many(for_process(DOMAIN, process.process_id, new_entries(2)), conn)


Call = Callable[[Repository, ProcessMetadata, AsyncConnection], Awaitable[None]]
OTHERS: list[Call] = [update, save, log_step, advance, save_many, log_many]


@pytest.mark.parametrize("end", ["written", "refused", "cancelled"])
@pytest.mark.parametrize("other", OTHERS, ids=lambda call: call.__name__)
async def test_a_call_of_another_task_is_refused(
    repository: Repository, engine: AsyncEngine, there: ProcessMetadata, other: Call, end: str
) -> None:
    paused = Paused(bad_process(domain="") if end == "refused" else new_process())
    async with engine.begin() as conn, aclosing(paused.items()) as items:
        task = asyncio.create_task(repository.save_many(items, conn))
        await paused.has_begun.wait()
        with pytest.raises(InvalidInputError, match="is in use by another call") as caught:
            await other(repository, there, conn)
        assert caught.value.field == "conn"
        paused.may_go_on.set()
        if end == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is (end == "cancelled")
        # It is free again, whether or not the call succeeded.
        again = await repository.get_by_id(DOMAIN, there.process_id, conn)
        assert again is not None
        await other(repository, again, conn)
        if not task.cancelled():
            assert (task.exception() is None) is (end == "written")
    written = {"save": 1, "save_many": 2}.get(other.__name__, 0)
    assert (await numbers(engine))[0] == 1 + written + (2 if end == "written" else 0)


async def test_another_connection_is_free(repository: Repository, engine: AsyncEngine, there: ProcessMetadata) -> None:
    paused = Paused(new_process())
    async with engine.begin() as conn, engine.begin() as another:
        task = asyncio.create_task(repository.save_many(paused.items(), conn))
        await paused.has_begun.wait()
        await update(repository, there, another)
        await save_many(repository, there, another)
        await save(repository, there, conn=another)
        paused.may_go_on.set()
        assert await task == 2


async def test_two_that_begin_at_once(repository: Repository, engine: AsyncEngine) -> None:
    """No other task can run between the check and the reservation."""
    async with engine.begin() as conn:
        await conn.execute(text("SELECT 1"))
        calls = [repository.save_many(new_processes(3), conn) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, InvalidInputError)]
    assert results.count(3) == 3 - len(refused) >= 1
    assert (await numbers(engine))[0] == 3 * results.count(3)


async def test_the_callers_items_may_come_from_the_connection(
    repository: Repository, engine: AsyncEngine, there: ProcessMetadata
) -> None:
    """The generator runs in the task of the call, and may write too, in a bulk call of its own even."""

    async def processes(conn: AsyncConnection) -> AsyncIterator[ProcessMetadata]:
        await update(repository, there, conn)
        yield new_process()
        assert await repository.save_many(new_processes(2), conn) == 2
        await log_many(repository, there, conn)
        yield new_process()

    async with engine.begin() as conn:
        assert await repository.save_many(processes(conn), conn) == 2
    assert await numbers(engine) == (5, 2)


async def test_after_an_inner_call_the_connection_is_still_reserved(engine: AsyncEngine) -> None:
    async def look(connection: Any) -> None:
        with pytest.raises(InvalidInputError):
            check_not_in_use(connection)

    async with engine.connect() as conn:
        sync = conn.sync_connection
        assert sync is not None
        with savepoint_open(sync):
            with savepoint_open(sync):
                await asyncio.create_task(look(sync))
            await asyncio.create_task(look(sync))
            check_not_in_use(sync)
        await asyncio.create_task(free(sync))


async def free(connection: Any) -> None:
    check_not_in_use(connection)


async def test_a_call_that_is_never_finished_keeps_nothing_alive(engine: AsyncEngine) -> None:
    """Its task is gone: nobody is refused because of it, and the connection can be freed."""

    async def begin(connection: Any) -> None:
        abandoned.append(savepoint_open(connection))
        abandoned[0].__enter__()

    abandoned: list[Any] = []
    async with engine.connect() as conn:
        sync = conn.sync_connection
        assert sync is not None
        await asyncio.create_task(begin(sync))
        await asyncio.sleep(0)  # the event loop has let go of it
        gc.collect()
        check_not_in_use(sync)
        gone = weakref.ref(sync)
    del conn, sync
    abandoned.clear()
    gc.collect()
    assert gone() is None
