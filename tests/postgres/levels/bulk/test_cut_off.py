"""A bulk call is cancelled, or its connection is lost."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from itertools import chain, count

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from commandbus_process import (
    InvalidInputError,
    ProcessAuditEntry,
    ProcessMetadata,
)
from tests.support.bulk_failures import NOT_A_NUMBER, Known, Repository
from tests.support.cancelling import Cancelled, completed, no_task_is_left
from tests.support.items import (
    BATCH,
    asynchronous,
    bad_process,
    for_process,
    new_entries,
    new_process,
    new_processes,
    numbers,
)
from tests.support.waiting import is_waiting_for_a_lock, waiting_sessions


async def test_cancelled_wherever_it_waits(known: Known, engine: AsyncEngine, complaints: list[object]) -> None:
    """Before, within and between three batches: an entry that is given again begins another one."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    cancelled = finished = kept = 0
    before = asyncio.all_tasks()
    task = None
    async with no_task_is_left():
        for delay in (0, 3, 9):
            for point in count(1):
                first, *others = new_entries(4)
                entries = list(chain.from_iterable((first, other) for other in others))

                async def log(entries: list[ProcessAuditEntry] = entries) -> None:
                    async with aclosing(asynchronous(for_process(*known.key, entries))) as items:
                        assert await known.repository.log_many(items) == 4

                operation = Cancelled(log(), point, delay)
                task = asyncio.create_task(completed(operation))
                await asyncio.wait([task])
                assert asyncio.all_tasks() == before
                assert pool.checkedout() == 0
                there = len(await known.repository.get_audit_trail(*known.key)) - 1
                if task.cancelled():
                    cancelled += 1
                    assert there in {kept, kept + 4}  # the COMMIT may have been done
                else:
                    task.result()
                    finished += 1
                    assert there == kept + 4
                kept = there
                if operation.waits < point:
                    break
    del task
    gc.collect()
    assert complaints == []
    assert finished >= 3
    assert cancelled > 20


async def test_cancelled_between_two_batches(known: Known, engine: AsyncEngine, complaints: list[object]) -> None:
    asked = asyncio.Event()

    async def processes() -> AsyncIterator[ProcessMetadata]:
        for process in new_processes(BATCH + 1):
            yield process
        asked.set()
        await asyncio.Event().wait()

    async with no_task_is_left():
        task = asyncio.create_task(known.repository.save_many(processes()))
        await asked.wait()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert await numbers(engine) == (1, 1)
    asked.clear()
    async with engine.connect() as conn:
        await known.repository.save(new_process(), conn)
        async with no_task_is_left():
            task = asyncio.create_task(known.repository.save_many(processes(), conn))
            await asked.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        await conn.commit()  # no statement was cut off, so the caller's transaction goes on
    assert await numbers(engine) == (2, 1)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del task
    gc.collect()
    assert complaints == []


async def test_cancelled_while_it_waits_for_a_lock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, complaints: list[object]
) -> None:
    process = new_process()
    async with engine.begin() as holder:
        await repository.save(process, holder)
        async with no_task_is_left():
            processes = chain(new_processes(BATCH), [new_process(process.process_id)])
            task = asyncio.create_task(repository.save_many(processes))
            await is_waiting_for_a_lock(administrator)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        # The lock is still held, so the other would still wait for it, were it not gone from the server too.
        assert await waiting_sessions(administrator) == 0
    assert await numbers(engine) == (1, 0)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del task
    gc.collect()
    assert complaints == []


async def sent_into_a_lock(
    taken: ProcessMetadata, administrator: AsyncEngine, then: Callable[[], AsyncIterator[ProcessMetadata]]
) -> AsyncGenerator[ProcessMetadata]:
    """A batch that has to wait for the lock, and what comes while it does."""
    yield new_process(taken.process_id)
    for process in new_processes(BATCH):
        yield process
    await is_waiting_for_a_lock(administrator)
    async for process in then():
        yield process


async def forever() -> AsyncIterator[ProcessMetadata]:
    await asyncio.Event().wait()
    yield new_process()


async def refused() -> AsyncIterator[ProcessMetadata]:
    yield bad_process(state=NOT_A_NUMBER)


async def test_cancelled_while_it_prepares_a_batch_and_the_last_waits_for_a_lock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    async with engine.connect() as holder:
        await repository.save(process, holder)
        async with aclosing(sent_into_a_lock(process, administrator, forever)) as items, no_task_is_left():
            task = asyncio.create_task(repository.save_many(items))
            await is_waiting_for_a_lock(administrator)
            task.cancel()
            async with asyncio.timeout(30):
                await asyncio.wait([task])
        assert task.cancelled()
        assert await waiting_sessions(administrator) == 0
        await holder.rollback()
    assert await numbers(engine) == (0, 0)


async def test_a_process_is_refused_while_the_last_batch_waits_for_a_lock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    async with engine.connect() as holder:
        await repository.save(process, holder)
        async with aclosing(sent_into_a_lock(process, administrator, refused)) as items, no_task_is_left():
            async with asyncio.timeout(30):
                with pytest.raises(InvalidInputError) as caught:
                    await repository.save_many(items)
        assert caught.value.field == f"processes[{BATCH + 1}].state"
        assert await waiting_sessions(administrator) == 0
        await holder.rollback()
    assert await numbers(engine) == (0, 0)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0


async def test_a_callers_connection_that_is_cancelled_in_a_batch_has_to_be_rolled_back(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, complaints: list[object]
) -> None:
    process = new_process()
    async with engine.connect() as holder, engine.connect() as conn:
        await repository.save(process, holder)
        await repository.save(new_process(), conn)
        async with no_task_is_left():
            task = asyncio.create_task(repository.save_many([new_process(process.process_id)], conn))
            await is_waiting_for_a_lock(administrator)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        await holder.rollback()
        with pytest.raises(PendingRollbackError):
            await repository.save_many([new_process()], conn)
        await conn.rollback()
        assert await repository.save_many([process], conn) == 1
        await conn.commit()
    assert await numbers(engine) == (1, 0)
    del task
    gc.collect()
    assert complaints == []


async def test_a_connection_that_is_lost_in_a_batch(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, complaints: list[object]
) -> None:
    process = new_process()
    async with engine.begin() as holder:
        await repository.save(process, holder)
        async with no_task_is_left():
            processes = chain(new_processes(BATCH), [new_process(process.process_id)])
            task = asyncio.create_task(repository.save_many(processes))
            await is_waiting_for_a_lock(administrator)
            async with administrator.connect() as connection:
                await connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    )
                )
            with pytest.raises(DBAPIError) as caught:
                await task
            assert caught.value.connection_invalidated
    assert await numbers(engine) == (1, 0)
    assert await repository.save_many(new_processes(2)) == 2
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del task, caught
    gc.collect()
    assert complaints == []
