"""A purge beside other purges and writers, and one that is killed."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessNotFoundError,
    ProcessRetention,
    ProcessStatus,
    ProcessWithTrail,
    PurgeProgress,
)
from tests.support.databases import Server, as_role, async_url
from tests.support.ended import END, days, ended, last, left, steps, steps_by_process, store
from tests.support.items import DOMAIN, numbers
from tests.support.waiting import is_waiting_for_a_lock


@pytest.fixture
def repository(administrator: AsyncEngine) -> PostgresProcessRepository[JsonObject]:
    return PostgresProcessRepository(administrator)


async def test_two_purges_at_once_delete_each_process_once(
    retention: ProcessRetention, administrator: AsyncEngine
) -> None:
    await store(administrator, [ended(created=90 - number / 100) for number in range(200)])

    async def purge() -> PurgeProgress:
        return await last(retention.purge(DOMAIN, ended_before=END, batch_size=7))

    found = await asyncio.gather(*(purge() for _ in range(3)))
    assert await numbers(administrator) == (0, 0)
    assert sum(each.processes for each in found) == 200
    assert sum(each.steps for each in found) == 400


async def test_what_another_purge_holds_is_skipped(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    """It would otherwise wait for as long as the other one archives."""
    await store(administrator, [ended(created=90 - number) for number in range(4)])
    holds, go_on = asyncio.Event(), asyncio.Event()

    async def archive(_conn: AsyncConnection, _batch: list[ProcessWithTrail]) -> None:
        holds.set()
        await go_on.wait()

    first = asyncio.ensure_future(anext(retention.purge(DOMAIN, ended_before=END, batch_size=2, before_delete=archive)))
    await holds.wait()
    async with asyncio.timeout(30):
        assert (await last(retention.purge(DOMAIN, ended_before=END))).processes == 2
    go_on.set()
    assert (await first).processes == 2
    assert await numbers(administrator) == (0, 0)


async def test_what_a_writer_holds_is_left_for_the_next_purge(
    retention: ProcessRetention, administrator: AsyncEngine, repository: PostgresProcessRepository[JsonObject]
) -> None:
    held, free = ended(), ended()
    await store(administrator, [held, free])
    async with administrator.begin() as conn:
        await repository.get_by_id(DOMAIN, held.process_id, conn, for_update=True)
        async with asyncio.timeout(30):
            assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(1, 2, None)
    assert await left(administrator) == {held.process_id}
    assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(1, 2, None)


async def test_what_was_claimed_is_left(
    retention: ProcessRetention, administrator: AsyncEngine, repository: PostgresProcessRepository[JsonObject]
) -> None:
    await store(administrator, [ended(status=ProcessStatus.FAILED) for _ in range(3)])
    async with administrator.begin() as conn:
        [claimed] = await repository.claim(DOMAIN, [ProcessStatus.FAILED], conn, limit=1)
        assert (await last(retention.purge(DOMAIN, ended_before=END))).processes == 2
        claimed.status = ProcessStatus.PENDING
        await repository.update(claimed, conn)
    assert (await last(retention.purge(DOMAIN, ended_before=END))).processes == 0
    assert await left(administrator) == {claimed.process_id}


async def test_a_step_that_is_being_logged_keeps_its_process(
    retention: ProcessRetention, administrator: AsyncEngine, repository: PostgresProcessRepository[JsonObject]
) -> None:
    process = ended()
    await store(administrator, [process])
    async with administrator.begin() as conn:
        await repository.log_step(DOMAIN, process.process_id, steps(1)[0], conn)
        assert (await last(retention.purge(DOMAIN, ended_before=END))).processes == 0
    assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(1, 3, None)
    assert await numbers(administrator) == (0, 0)


async def test_a_step_that_comes_too_late_is_refused(
    retention: ProcessRetention, administrator: AsyncEngine, repository: PostgresProcessRepository[JsonObject]
) -> None:
    process = ended()
    await store(administrator, [process])
    late: list[asyncio.Task[bool]] = []

    async def archive(_conn: AsyncConnection, _batch: list[ProcessWithTrail]) -> None:
        late.append(asyncio.create_task(repository.log_step(DOMAIN, process.process_id, steps(1)[0])))
        await is_waiting_for_a_lock(administrator)

    purge = retention.purge(DOMAIN, ended_before=END, before_delete=archive)
    assert await last(purge) == PurgeProgress(1, 2, None)
    with pytest.raises(ProcessNotFoundError):
        await late[0]
    assert await numbers(administrator) == (0, 0)


async def test_the_statement_that_deletes_sees_what_was_logged_until_the_lock(
    retention: ProcessRetention, administrator: AsyncEngine
) -> None:
    """So each statement must have its own snapshot, whatever the engine's transactions are."""
    await store(administrator, [ended()])
    levels: list[object] = []

    async def archive(conn: AsyncConnection, _batch: list[ProcessWithTrail]) -> None:
        levels.append(await conn.scalar(text("SHOW transaction_isolation")))

    await last(retention.purge(DOMAIN, ended_before=END, before_delete=archive))
    assert levels == ["read committed"]


async def test_beside_writers_there_is_never_an_orphan_nor_a_lost_live_process(
    retention: ProcessRetention, administrator: AsyncEngine, repository: PostgresProcessRepository[JsonObject]
) -> None:
    processes = [ended(created=90 - number / 100) for number in range(120)]
    await store(administrator, processes)
    chosen = random.Random(7)  # noqa: S311 - which processes are taken up
    taken_up = chosen.sample(processes, 40)
    taken: set[object] = set()

    async def take_up() -> None:
        for each in taken_up:
            found = await repository.get_by_id(DOMAIN, each.process_id)
            if found is None:
                continue
            found.status = ProcessStatus.PENDING
            with suppress(ProcessNotFoundError):
                await repository.update(found)
                await repository.log_step(DOMAIN, each.process_id, steps(1)[0])
                taken.add(each.process_id)

    async def log() -> None:
        for each in processes:
            with suppress(ProcessNotFoundError):
                await repository.log_step(DOMAIN, each.process_id, steps(1)[0])

    purges = (last(retention.purge(DOMAIN, ended_before=END, batch_size=5)) for _ in range(2))
    await asyncio.gather(take_up(), log(), *purges)
    await last(retention.purge(DOMAIN, ended_before=END))
    assert await left(administrator) == taken
    assert set(await steps_by_process(administrator)) == taken


@pytest.fixture
async def doomed(database_url: str, server: Server, purger_level: str) -> AsyncIterator[AsyncEngine]:
    """An engine of the purger's, whose sessions are killed."""
    engine = create_async_engine(async_url(as_role(database_url, server.purger)), isolation_level=purger_level)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("statement", ["BEFORE SET", "BEFORE WITH seen", "BEFORE WITH due", "AFTER WITH due"])
async def test_killed_between_two_statements_and_run_again(
    doomed: AsyncEngine, retention: ProcessRetention, administrator: AsyncEngine, statement: str
) -> None:
    await store(administrator, [ended(created=90 - number) for number in range(6)])
    when, _, begins = statement.partition(" ")
    killed = 0

    def kill(_connection: object, _cursor: object, sent: str, *_: object) -> None:
        nonlocal killed
        if sent.startswith(begins):
            killed += 1
            if killed == 2:
                raise _Killed

    event.listen(doomed.sync_engine, f"{when.lower()}_cursor_execute", kill)
    progress: list[PurgeProgress] = []
    with suppress(_Killed):
        async for each in ProcessRetention(doomed).purge(DOMAIN, ended_before=END, batch_size=2):
            progress.append(each)  # noqa: PERF401 - it ends early
    assert progress == [PurgeProgress(2, 4, END - days(89))]
    kept = await left(administrator)
    assert len(kept) == 4
    assert await steps_by_process(administrator) == dict.fromkeys(kept, 2)
    assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(4, 8, None)


class _Killed(BaseException):
    """Like the end of the program: nothing in it runs any more, except what Python itself does."""


@pytest.mark.parametrize("how", ["terminated", "cancelled"])
@pytest.mark.parametrize("seed", range(4))
async def test_killed_at_random_points_and_run_again(
    doomed: AsyncEngine,
    retention: ProcessRetention,
    administrator: AsyncEngine,
    how: str,
    seed: int,
) -> None:
    await store(administrator, [ended(created=90 - number / 100) for number in range(150)])
    chosen = random.Random(seed)  # noqa: S311 - when to kill
    terminate = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND query ~ 'deleted_steps|seen'"
    )
    for _ in range(5):
        purge = asyncio.ensure_future(last(ProcessRetention(doomed).purge(DOMAIN, ended_before=END, batch_size=3)))
        for _ in range(chosen.randrange(1, 40)):
            await asyncio.sleep(0)
        if how == "cancelled":
            purge.cancel()
        else:
            async with administrator.connect() as connection:
                await connection.execute(terminate)
        with suppress(asyncio.CancelledError, DBAPIError):
            await purge
        kept = await left(administrator)
        assert await steps_by_process(administrator) == dict.fromkeys(kept, 2)
    await last(retention.purge(DOMAIN, ended_before=END))
    assert await numbers(administrator) == (0, 0)


async def test_a_lost_race_is_run_again(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    await store(administrator, [ended(), ended(created=80)])
    attempts = 0

    async def archive(conn: AsyncConnection, _batch: list[ProcessWithTrail]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise_deadlock = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$"
            await conn.execute(text(raise_deadlock))

    assert await last(retention.purge(DOMAIN, ended_before=END, before_delete=archive)) == PurgeProgress(2, 4, None)
    assert attempts == 2
    assert await numbers(administrator) == (0, 0)
