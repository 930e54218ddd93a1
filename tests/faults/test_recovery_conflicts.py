"""A standby cancels reads that are in the way of what its primary sends. That is no lost race, and is not told as one.

Real conflicts: rows that a snapshot still sees are vacuumed, a table that is being read is locked, and a page that is
being read is pruned by the primary.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessFilter,
    ProcessMetadata,
    RecoveryConflictError,
    run_in_transaction,
)
from tests.faults.replicas import Replicas, configure, flush, until
from tests.support.databases import async_url, execute
from tests.support.items import new_process

Repository = PostgresProcessRepository[JsonObject]

PROCESS, AUDIT = "commandbus.process", "commandbus.process_audit"
_HOLDS = "SELECT count(*) = 1 FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock' AND relation = %s::regclass"
_WAITS = "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock' AND relation = %s::regclass"


class Attempts(logging.Handler):
    """What was logged of attempts that are run again."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.waiting: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.waiting.put_nowait(record.getMessage())


@pytest.fixture
async def attempts(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Attempts]:
    caplog.set_level(logging.DEBUG, "commandbus_process")
    handler = Attempts()
    logging.getLogger("commandbus_process").addHandler(handler)
    yield handler
    logging.getLogger("commandbus_process").removeHandler(handler)


@pytest.fixture(scope="module")
def conflicting(own_replicas: Replicas) -> Iterator[Replicas]:
    """A pair whose standby cancels at once, and has tables of the test's own."""
    execute(
        own_replicas.primary.url,
        "CREATE TABLE public.others AS SELECT generate_series(1, 1000) AS n; GRANT SELECT ON public.others TO PUBLIC",
    )
    yield own_replicas
    execute(own_replicas.primary.url, "DROP TABLE public.others")


@pytest.fixture
def impatient(conflicting: Replicas, pair: Replicas) -> Iterator[Replicas]:
    assert conflicting is pair
    configure(pair.standby, max_standby_streaming_delay="0")
    yield pair
    configure(pair.standby, max_standby_streaming_delay="30s")


@pytest.fixture
async def administrator(pair: Replicas) -> AsyncIterator[AsyncEngine]:
    """On the primary."""
    engine = create_async_engine(async_url(pair.primary.url), isolation_level="AUTOCOMMIT")
    yield engine
    await engine.dispose()


@pytest.fixture
async def standby(pair: Replicas) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(pair.standby.application_url))
    yield engine
    await engine.dispose()


@pytest.fixture
async def stored(pair: Replicas, administrator: AsyncEngine) -> ProcessMetadata:
    process = new_process()
    await Repository(administrator).save(process)
    pair.catch_up()
    return process


@asynccontextmanager
async def locked(pair: Replicas, administrator: AsyncEngine, table: str) -> AsyncGenerator[None]:
    """Lock a table on the primary, and thereby on the standby; return when it is locked on both."""
    async with administrator.connect() as holder:
        await holder.execute(text(f"BEGIN; LOCK TABLE {table}"))
        await asyncio.to_thread(flush, pair.primary)
        await asyncio.to_thread(until, pair.standby, _HOLDS, table)
        yield
        await holder.execute(text("COMMIT"))


async def vacuum(pair: Replicas, administrator: AsyncEngine) -> None:
    """Remove rows that every snapshot until now sees; return when the standby has done so, too."""
    async with administrator.connect() as connection:
        await connection.execute(text("DELETE FROM public.others"))
        await connection.execute(text("VACUUM public.others"))
        await connection.execute(text("INSERT INTO public.others SELECT generate_series(1, 1000)"))
    await asyncio.to_thread(pair.catch_up)


async def test_a_transaction_that_is_idle_meanwhile_loses_its_session(
    impatient: Replicas, administrator: AsyncEngine, standby: AsyncEngine, stored: ProcessMetadata
) -> None:
    key = stored.domain, stored.process_id
    async with standby.connect() as conn:
        await conn.execution_options(isolation_level="REPEATABLE READ")
        assert await Repository(standby).get_by_id(*key, conn) == stored
        await vacuum(impatient, administrator)
        with pytest.raises(RecoveryConflictError) as caught:
            await Repository(standby).get_by_id(*key, conn)
        await conn.rollback()
    assert (caught.value.sqlstate, caught.value.retryable) == ("40001", True)
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert await Repository(standby).get_by_id(*key) == stored


async def test_a_transaction_that_waits_meanwhile_is_cancelled(
    impatient: Replicas, administrator: AsyncEngine, standby: AsyncEngine, stored: ProcessMetadata
) -> None:
    key = stored.domain, stored.process_id
    async with standby.connect() as conn:
        assert await Repository(standby).get_by_id(*key, conn) == stored
        async with locked(impatient, administrator, AUDIT):
            waiting = asyncio.ensure_future(Repository(standby).get_audit_trail(*key, conn))
            await asyncio.to_thread(until, impatient.standby, _WAITS, AUDIT)
            async with locked(impatient, administrator, PROCESS):
                with pytest.raises(RecoveryConflictError) as caught:
                    await waiting
        await conn.rollback()
        assert not conn.invalidated
    assert caught.value.sqlstate == "40001"


@pytest.mark.parametrize("times", [1, 5])
async def test_a_read_without_a_connection_is_tried_again_but_not_for_ever(
    impatient: Replicas,
    administrator: AsyncEngine,
    standby: AsyncEngine,
    stored: ProcessMetadata,
    attempts: Attempts,
    times: int,
) -> None:
    queries = PostgresProcessQueries(standby)
    wanted = ProcessFilter(domain=stored.domain)
    async with locked(impatient, administrator, AUDIT):
        page = asyncio.ensure_future(queries.page(wanted, steps=True))
        for _ in range(times):
            await asyncio.to_thread(until, impatient.standby, _WAITS, AUDIT)
            async with locked(impatient, administrator, PROCESS):
                another = asyncio.ensure_future(attempts.waiting.get())
                await asyncio.wait([another, page], timeout=30, return_when=asyncio.FIRST_COMPLETED)
                another.cancel()
    if times == 1:
        assert stored.process_id in [each.process_id for each in (await page).items]
    else:
        with pytest.raises(RecoveryConflictError):
            await page
    assert attempts.messages == [
        f"attempt {number} was in the way of a standby's recovery (40001); it is run again"
        for number in range(1, min(times, 4) + 1)
    ]


async def test_a_stream_in_pages_goes_on_and_a_consistent_one_does_not(
    impatient: Replicas, administrator: AsyncEngine, standby: AsyncEngine
) -> None:
    domain, number = "streamed", 1_500  # more than are read at a time
    processes = [new_process().model_copy(update={"domain": domain}) for _ in range(number)]
    await Repository(administrator).save_many(processes)
    await asyncio.to_thread(impatient.catch_up)
    queries = PostgresProcessQueries(standby)
    async with queries.stream(ProcessFilter(domain=domain)) as stream:
        read = [(await anext(stream)).process_id]
        await vacuum(impatient, administrator)
        read += [process.process_id async for process in stream]
    assert sorted(read) == sorted(process.process_id for process in processes)
    with pytest.raises(RecoveryConflictError):  # noqa: PT012 - it is the second of its statements that raises
        async with queries.stream(ProcessFilter(domain=domain), consistent=True) as stream:
            await anext(stream)
            await vacuum(impatient, administrator)
            async for _ in stream:
                pass
    assert (await queries.count(ProcessFilter(domain=domain))).value == number


async def test_a_deadlock_with_recovery_is_no_deadlock_with_a_transaction(
    conflicting: Replicas, administrator: AsyncEngine, standby: AsyncEngine, stored: ProcessMetadata
) -> None:
    """The reader waits for the lock that recovery holds, and recovery for the page that the reader's cursor is on."""
    pair = conflicting
    async with administrator.connect() as connection:
        await connection.execute(text("DELETE FROM public.others WHERE n % 2 = 0"))
    await asyncio.to_thread(pair.catch_up)
    async with (
        standby.connect() as conn,
        administrator.connect() as connection,
        locked(pair, administrator, PROCESS),
    ):
        await conn.execute(text("DECLARE reader CURSOR FOR SELECT n FROM public.others"))
        await conn.execute(text("FETCH 1 FROM reader"))
        await connection.execute(text("VACUUM public.others"))
        await asyncio.to_thread(flush, pair.primary)
        await asyncio.to_thread(
            until,
            pair.standby,
            "SELECT wait_event_type = 'BufferPin' FROM pg_stat_activity WHERE backend_type = 'startup'",
        )
        with pytest.raises(RecoveryConflictError) as caught:
            await Repository(standby).get_by_id(stored.domain, stored.process_id, conn)
        assert caught.value.sqlstate == "40P01"
        await conn.rollback()


async def test_run_in_transaction_reads_again(
    impatient: Replicas, administrator: AsyncEngine, standby: AsyncEngine
) -> None:
    """Also if the caller's own statement was cancelled."""
    attempts = 0

    async def work(conn: AsyncConnection) -> int:
        nonlocal attempts
        attempts += 1
        await conn.execute(text("SELECT 1 FROM public.others"))
        if attempts == 1:
            await vacuum(impatient, administrator)
        found = await conn.execute(text("SELECT count(*) FROM commandbus.process"))
        return int(found.scalar_one())

    engine = standby.execution_options(isolation_level="REPEATABLE READ")
    await run_in_transaction(engine, work)
    assert attempts == 2
