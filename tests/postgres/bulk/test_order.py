"""The order in which many rows are written, and how many savepoints that takes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    DeadlockError,
    InvalidInputError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessMetadata,
    StepAlreadyLoggedError,
)
from commandbus_process import _batches as batches
from tests.support.items import (
    DOMAIN,
    NOON,
    Step,
    bad_process,
    for_process,
    new_entries,
    new_entry,
    new_process,
    new_processes,
    numbers,
    step_names,
)
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository[Any]
RUNS = 20
NUMBER = 300
MIDDLE = NUMBER // 2


async def in_opposite_order(calls: Iterable[Awaitable[int]]) -> list[object]:
    async with asyncio.timeout(60):
        results: list[object] = list(await asyncio.gather(*calls, return_exceptions=True))
    assert not [result for result in results if isinstance(result, DeadlockError)]
    return results


SESSIONS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
DEADLOCKS = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


async def deadlocks(engine: AsyncEngine, administrator: AsyncEngine) -> int:
    """How many the server has found, also without an error. A session reports its number when it ends."""
    await engine.dispose()
    async with asyncio.timeout(30), administrator.connect() as conn:
        while (await conn.execute(SESSIONS)).scalar_one() > 1:
            await conn.rollback()
        return int((await conn.execute(DEADLOCKS)).scalar_one())


async def until_both_wait(holder: AsyncConnection, administrator: AsyncEngine) -> int:
    """Let the middle one go when both calls wait: one of them for it, if they have begun at different ends both."""
    await is_waiting_for_a_lock(administrator, 2)
    await holder.rollback()
    return 0


@pytest.mark.own_database
async def test_processes_in_opposite_order_do_not_deadlock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    for number in range(1, RUNS + 1):
        ids = sorted(uuid4() for _ in range(NUMBER))
        async with engine.connect() as holder:
            await repository.save(new_process(ids[MIDDLE]), holder)
            calls = [repository.save_many(new_process(each) for each in given) for given in (ids, ids[::-1])]
            results = await in_opposite_order([*calls, until_both_wait(holder, administrator)])
        assert NUMBER in results
        assert await numbers(engine) == (number * NUMBER, 0)
    assert await deadlocks(engine, administrator) == 0


@pytest.mark.own_database
@pytest.mark.parametrize("way", ["by COPY", "by INSERT"])
async def test_steps_in_opposite_order_do_not_deadlock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, way: str
) -> None:
    """After one that is known, INSERT writes them."""
    processes = sorted(new_processes(NUMBER), key=lambda process: process.process_id)
    known = DOMAIN, processes[0].process_id, new_entry()
    before = [known] if way == "by INSERT" else []
    await repository.save_many(processes)
    await repository.log_many([known])
    for number in range(1, RUNS + 1):
        steps: list[Step] = [(DOMAIN, process.process_id, new_entry()) for process in processes]
        async with engine.connect() as holder:
            await repository.log_step(*steps[MIDDLE], holder)
            calls = [repository.log_many(chain(before, given)) for given in (steps, steps[::-1])]
            results = await in_opposite_order([*calls, until_both_wait(holder, administrator)])
        assert sorted(map(str, results)) == ["0", "0", str(NUMBER)]
        assert await numbers(engine) == (NUMBER, 1 + number * NUMBER)
    assert await deadlocks(engine, administrator) == 0


@pytest.mark.own_database
async def test_processes_by_insert_in_opposite_order_do_not_deadlock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    """Two transactions that have used up their COPYs."""
    shared = new_process()
    await repository.save(shared)

    async def save(ids: list[UUID]) -> int:
        async with engine.begin() as conn:
            for _ in range(60):
                await repository.log_many(for_process(DOMAIN, shared.process_id, new_entries(1)), conn)
            return await repository.save_many((new_process(each) for each in ids), conn)

    for number in range(1, 4):
        ids = sorted(uuid4() for _ in range(NUMBER))
        async with engine.connect() as holder:
            await repository.save(new_process(ids[MIDDLE]), holder)
            calls = [save(ids), save(ids[::-1]), until_both_wait(holder, administrator)]
            assert NUMBER in await in_opposite_order(calls)
        assert (await numbers(engine))[0] == 1 + number * NUMBER
    assert await deadlocks(engine, administrator) == 0


async def test_the_trail_is_in_the_given_order(repository: Repository, conn: AsyncConnection | None) -> None:
    processes = list(new_processes(20))
    await repository.save_many(processes, conn)
    entries = list(new_entries(200))
    steps = [(DOMAIN, processes[number % 20].process_id, entry) for number, entry in enumerate(entries)]
    await repository.log_many(steps, conn)
    for number, process in enumerate(processes):
        trail = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
        assert step_names(trail) == step_names(entries[number::20])


async def test_errors_are_in_the_order_of_the_items(repository: Repository, conn: AsyncConnection | None) -> None:
    """Also of domains, which come before the ids in the order of writing."""
    taken = [new_process().model_copy(update={"domain": f"domain {number % 3}"}) for number in range(30)]
    await repository.save_many(taken, conn)
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        await repository.save_many([each.model_copy() for each in taken[::-1]], conn)
    told = [caught.value, *caught.value.other_errors]
    assert [each.process_id for each in told] == [each.process_id for each in taken[::-1]]
    steps = [(each.domain, each.process_id, new_entry()) for each in taken]
    await repository.log_many(steps, conn)
    others = [(domain, key, entry.model_copy(update={"step_name": "other"})) for domain, key, entry in steps]
    with pytest.raises(StepAlreadyLoggedError) as logged:
        await repository.log_many(others, conn)
    assert [each.process_id for each in (logged.value, *logged.value.other_errors)] == [
        each.process_id for each in taken
    ]
    assert (logged.value.recorded, logged.value.given) == (steps[0][2], others[0][2])
    with pytest.raises(InvalidInputError) as refused:
        await repository.save_many([*new_processes(7), bad_process(domain="")], conn)
    assert refused.value.field == "processes[7]"


# Savepoints.

BACKEND = text(
    "SELECT subxact_count, subxact_overflowed FROM pg_stat_get_backend_idset() id, pg_stat_get_backend_subxact(id) "
    "WHERE pg_stat_get_backend_pid(id) = :pid"
)
WRITING = text(  # and autovacuum may be at work beside it
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL "
    "AND backend_type = 'client backend'"
)


async def savepoints(administrator: AsyncEngine) -> tuple[int, bool]:
    """How many savepoints the one session that has a transaction has written in, and whether it has lost count."""
    async with administrator.connect() as conn:
        pid = (await conn.execute(WRITING)).scalar_one()
        count, overflowed = (await conn.execute(BACKEND, {"pid": pid})).one()
        return count, overflowed


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST_ITEMS", 5)


MANY = 150 * 5


@pytest.mark.usefixtures("small_batches")
async def test_many_batches_take_few_savepoints(
    repository: Repository, conn: AsyncConnection | None, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    seen: list[tuple[int, bool]] = []
    processes = list(new_processes(MANY))

    async def given(items: Iterable[Any]) -> AsyncIterator[Any]:
        for item in items:
            yield item
        seen.append(await savepoints(administrator))

    assert await repository.save_many(given(processes), conn) == MANY
    steps = [(DOMAIN, process.process_id, new_entry(sent_at=NOON)) for process in processes]
    assert await repository.log_many(given(steps), conn) == MANY
    assert len(seen) == 2
    assert all(20 < number < 64 and not overflowed for number, overflowed in seen)
    for process, (*key, entry) in list(zip(processes, steps, strict=True))[::100]:
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry]
        assert key
    if conn is not None:
        await conn.commit()
    assert await numbers(engine) == (MANY, MANY)


async def test_many_calls_in_one_transaction_share_the_savepoints_for_copy(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_MOST_ITEMS", 2)
    async with engine.connect() as conn:
        for _ in range(10):
            assert await repository.save_many(new_processes(20), conn) == 20
        number, overflowed = await savepoints(administrator)
        assert 20 < number < 64
        assert not overflowed
        await conn.rollback()
        # Another transaction has savepoints of its own.
        await repository.save_many(new_processes(20), conn)
        assert (await savepoints(administrator))[0] == 11


@pytest.mark.usefixtures("small_batches")
async def test_a_taken_id_behind_the_last_copy(
    repository: Repository, conn: AsyncConnection | None, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    again = new_process(process.process_id)
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        await repository.save_many(chain([process], new_processes(MANY), [again]), conn)
    assert caught.value.process_id == process.process_id
    if conn is not None:
        await conn.commit()
    assert await numbers(engine) == (0, 0)


@pytest.mark.usefixtures("small_batches")
async def test_cancelled_while_it_waits_behind_the_last_copy(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    async with engine.connect() as holder:
        await repository.save(process, holder)
        items = chain(new_processes(MANY), [new_process(process.process_id)])
        task = asyncio.create_task(repository.save_many(items))
        await is_waiting_for_a_lock(administrator)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await holder.rollback()
    assert await numbers(engine) == (0, 0)
