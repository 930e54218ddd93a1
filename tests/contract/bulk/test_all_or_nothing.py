"""All items are written or none, and the caller's transaction is as it was before."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from itertools import chain

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from commandbus_process import (
    ProcessAlreadyExistsError,
    ProcessMetadata,
)
from tests.support.bulk_failures import (
    FAILURES,
    CallersError,
    Connection,
    Known,
    note,
)
from tests.support.cancelling import no_task_is_left
from tests.support.failed_statements import failed_statements
from tests.support.items import (
    BATCH,
    DOMAIN,
    for_process,
    new_entries,
    new_process,
    new_processes,
    numbers,
)


@pytest.mark.parametrize("failure", FAILURES)
async def test_after_an_error_in_the_third_batch_nothing_is_kept(
    known: Known, engine: AsyncEngine, complaints: list[object], failure: str
) -> None:
    error, attempt = FAILURES[failure]
    async with no_task_is_left():
        with pytest.raises(error) as caught:
            await attempt(known, None)
        assert type(caught.value) is error
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del caught
    gc.collect()
    assert await numbers(engine) == (1, 1)
    assert complaints == []


@pytest.mark.parametrize("failure", FAILURES)
async def test_after_an_error_in_the_third_batch_the_callers_transaction_is_as_it_was_before(
    known: Known, engine: AsyncEngine, complaints: list[object], failure: str
) -> None:
    error, attempt = FAILURES[failure]
    before, after = new_process(), new_process()
    failed = failed_statements(engine)
    async with engine.connect() as conn:
        await known.repository.save(before, conn)
        async with no_task_is_left():
            with pytest.raises(error):
                await attempt(known, conn)
        assert conn.in_transaction()
        assert not conn.in_nested_transaction()
        assert await known.repository.save_many([after], conn) == 1
        await conn.commit()
    assert failed == []
    assert await numbers(engine) == (3, 1)
    for process in (before, after):
        assert await known.repository.get_by_id(DOMAIN, process.process_id) == process
    gc.collect()
    assert complaints == []


async def test_after_an_error_in_the_first_batch_no_more_is_asked_for(
    known: Known, engine: AsyncEngine, conn: Connection, complaints: list[object]
) -> None:
    asked = 0

    async def processes() -> AsyncGenerator[ProcessMetadata]:
        nonlocal asked
        for process in chain([new_process(known.process.process_id)], new_processes(5 * BATCH)):
            asked += 1
            yield process

    async with aclosing(processes()) as items, no_task_is_left():
        with pytest.raises(ProcessAlreadyExistsError):
            await known.repository.save_many(items, conn)
    assert asked <= 2 * BATCH + 1
    if conn is not None:
        await conn.commit()
    assert await numbers(engine) == (1, 1)
    gc.collect()
    assert complaints == []


async def test_many_that_the_caller_rolls_back_are_gone(known: Known, engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        assert await known.repository.save_many(new_processes(3), conn) == 3
        assert await known.repository.log_many(for_process(*known.key, new_entries(3)), conn) == 3
        assert conn.in_transaction()
        assert not conn.in_nested_transaction()
        await conn.rollback()
    assert await numbers(engine) == (1, 1)


async def test_nothing_is_begun_committed_or_rolled_back_but_savepoints(known: Known, engine: AsyncEngine) -> None:
    seen: list[str] = []
    for name in ("begin", "commit", "rollback", "savepoint", "release_savepoint", "rollback_savepoint"):
        event.listen(engine.sync_engine, name, note(seen, name))
    async with engine.connect() as conn:
        await conn.begin()
        await known.repository.save_many(new_processes(2), conn)
        with pytest.raises(ProcessAlreadyExistsError):
            await known.repository.save_many([new_process(known.process.process_id)], conn)
        assert not conn.in_nested_transaction()
        await conn.commit()
    assert [name for name in seen if "savepoint" not in name] == ["begin", "commit"]
    assert "rollback_savepoint" in seen


async def test_an_error_in_the_callers_code_after_one_of_the_library(
    known: Known, engine: AsyncEngine, complaints: list[object]
) -> None:
    """The last batch has failed already when the caller's code fails. Nothing waits for it any more."""
    before = asyncio.all_tasks()

    async def processes() -> AsyncIterator[ProcessMetadata]:
        yield new_process(known.process.process_id)
        for process in new_processes(BATCH):
            yield process
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 - for the task that sends, which has no name here
            await asyncio.sleep(0)
        raise CallersError

    with pytest.raises((CallersError, ProcessAlreadyExistsError)) as caught:
        await known.repository.save_many(processes())
    del caught
    gc.collect()
    assert await numbers(engine) == (1, 1)
    assert complaints == []
