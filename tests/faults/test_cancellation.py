"""Tasks are cancelled in the middle of what they do with the repository."""

import asyncio
import gc
from collections.abc import AsyncIterator
from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata, ProcessRepositoryError
from tests.faults.ledger import Kind, Outcome, Verdict, verify
from tests.faults.load import Load
from tests.support.cancelling import Cancelled, completed
from tests.support.databases import async_url
from tests.support.items import DOMAIN
from tests.support.waiting import is_waiting_for_a_lock, waiting_sessions

TASKS = 1_000
ROUNDS = 5
AT_ONCE = 12
CONNECTIONS = 4  # fewer than there are tasks at once, so that some are cancelled while they wait for one
LONGEST_DELAY = 20  # turns of the event loop; a round trip to the server takes some ten

Repository = PostgresProcessRepository[JsonObject]


@pytest.fixture
async def small_pool(application_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(application_url), pool_size=CONNECTIONS, max_overflow=0, pool_timeout=30)
    yield engine
    await engine.dispose()


async def carry_out(load: Load, random: Random) -> None:
    """Write one thing of each kind, undisturbed."""
    for kind in Kind:
        write, run = load.prepare(kind, random)
        await run()
        load.acknowledge(write)


async def numbers_of_waits(engine: AsyncEngine) -> dict[Kind, int]:
    """How often an operation of each kind waits for something, when it has to connect first."""
    load, waits = Load(engine), dict[Kind, int]()
    for kind in Kind:
        await engine.dispose()
        write, run = load.prepare(kind, Random(0))  # noqa: S311 - to be the same again, not to be secret
        operation = Cancelled(run(), point=0, delay=0)
        await completed(operation)
        load.acknowledge(write)
        waits[kind] = operation.waits
    return waits


async def are_gone(administrator: AsyncEngine) -> None:
    """Return once no session but the administrator's is left that could still commit something."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(30), administrator.connect() as connection:
        while (await connection.execute(others)).scalar_one():
            await connection.rollback()  # within a transaction, the view stays the same


@pytest.mark.own_database
async def test_a_thousand_cancelled_tasks(
    small_pool: AsyncEngine, database_url: str, administrator: AsyncEngine, complaints: list[object]
) -> None:
    random = Random(6)  # noqa: S311 - to be the same again, not to be secret
    load = Load(small_pool)
    points = await numbers_of_waits(small_pool)
    await carry_out(load, random)
    cancelled = finished = 0
    # Kept until the pool is looked at: with a task goes its traceback, with that a connection that was forgotten, and
    # with that the pool would get it back. A connection that psycopg was still making when it was cancelled is closed
    # only by the garbage collector, so that the server would have too many of them in the end: hence the rounds.
    tasks: list[asyncio.Task[None]] = []

    async def cancel_tasks(until: int) -> None:
        nonlocal cancelled, finished
        while cancelled < until:
            write, run = load.choose(random)
            operation = Cancelled(run(), random.randint(1, points[write.kind]), random.randint(0, LONGEST_DELAY))
            task = asyncio.create_task(completed(operation))
            tasks.append(task)
            await asyncio.wait([task])
            if task.cancelled():
                cancelled += 1
                continue
            error = task.exception()
            if error is None:
                finished += 1
                load.acknowledge(write)
            elif isinstance(error, ProcessRepositoryError):
                write.outcome = Outcome.REFUSED
            else:
                raise error

    assert isinstance(small_pool.pool, QueuePool)
    for ended_rounds in range(1, ROUNDS + 1):
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(cancel_tasks(TASKS * ended_rounds // ROUNDS))
        assert small_pool.pool.checkedout() == 0
        tasks.clear()
        gc.collect()
    later = [Load(small_pool) for _ in range(2 * CONNECTIONS)]
    await asyncio.gather(*(carry_out(each, random) for each in later))
    assert small_pool.pool.checkedout() == 0

    await small_pool.dispose()
    await are_gone(administrator)
    verdict = verify(database_url, load.ledger)
    assert verdict.faults == 0, str(verdict)
    assert [verify(database_url, each.ledger) for each in later] == [Verdict()] * len(later)
    # The points were spread over all that can happen: before the commit, after it, and not at all.
    assert cancelled >= TASKS
    assert finished > 0
    assert verdict.absent > 0
    assert verdict.kept > 0
    assert complaints == []


async def test_cancelling_what_waits_for_a_lock(
    engine: AsyncEngine, repository: Repository, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    read = process.model_copy(deep=True)
    async with engine.begin() as holder:
        await repository.update(process, holder)
        task = asyncio.create_task(repository.update(read))
        await is_waiting_for_a_lock(administrator)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        # The lock is still held, so the other would still wait for it, were it not gone from the server too.
        assert await waiting_sessions(administrator) == 0
    assert await repository.get_by_id(DOMAIN, process.process_id) == process
    assert read.version == 1
    await repository.update(process)


async def test_a_callers_connection_that_is_cancelled_in_the_middle_has_to_be_rolled_back(
    engine: AsyncEngine, repository: Repository, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    read = process.model_copy(deep=True)
    async with engine.connect() as holder, engine.connect() as connection:
        await repository.update(process, holder)
        task = asyncio.create_task(repository.update(read, connection))
        await is_waiting_for_a_lock(administrator)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await holder.commit()
        with pytest.raises(PendingRollbackError):
            await repository.get_by_id(DOMAIN, process.process_id, connection)
        await connection.rollback()
        assert await repository.get_by_id(DOMAIN, process.process_id, connection) == process
