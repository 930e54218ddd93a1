"""The connection goes back to the pool as it came, whatever happened."""

import asyncio
import time
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio.exc import AsyncContextNotStarted

from commandbus_process import (
    PostgresProcessRepository,
    SchemaTooOldError,
)
from tests.support.cancelling import Cancelled
from tests.support.operations import (
    ENGINES,
    FAILURES,
    INVALIDATED,
    LONG,
    OPERATIONS,
    WAITING,
    Repository,
    as_none,
    engine_of,
    given_process,
    made,
    watched,
    without_columns,
)
from tests.support.waiting import is_waiting_for_a_lock


@pytest.mark.parametrize("name", ENGINES)
async def test_the_connection_goes_back_as_it_came(
    application_url: str, shared_url: str, plain: Repository, name: str, subtests: pytest.Subtests
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        given = await given_process(plain)
        for method, operation in OPERATIONS.items():
            with subtests.test(method):
                await operation(repository, given, None)
                pool.assert_as_it_came(times=1)
        for failure in FAILURES:
            with pytest.raises(failure.error):
                await failure.operation(repository, given, None)
            pool.assert_as_it_came(times=1)
        given = await given_process(plain)
        with without_columns(shared_url):
            for method, operation in OPERATIONS.items():
                with subtests.test(method):
                    with pytest.raises(SchemaTooOldError) as caught:
                        await operation(repository, given, None)
                    assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedColumn)
                    pool.assert_as_it_came(times=1)
        for method, operation in OPERATIONS.items():
            with subtests.test(method):
                await operation(repository, given, None)
                pool.assert_as_it_came(times=1)
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            autocommit = cast("psycopg.AsyncConnection[Any]", raw.driver_connection).autocommit
            assert autocommit == name.startswith("AUTOCOMMIT")


@pytest.mark.parametrize("name", ENGINES)
async def test_the_connection_of_a_cancelled_task_does_not_come_back_changed(
    application_url: str, administrator: AsyncEngine, plain: Repository, name: str, subtests: pytest.Subtests
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        for method, operation in WAITING.items():
            with subtests.test(method):
                given = await given_process(plain)
                async with administrator.connect() as holder:
                    await holder.execute(text("LOCK TABLE commandbus.process, commandbus.process_audit"))
                    task = asyncio.ensure_future(operation(repository, given, None))
                    await is_waiting_for_a_lock(administrator)
                    task.cancel()
                    await asyncio.wait([task])
                    assert task.cancelled()
                assert len(pool.returned) == len(pool.borrowed) == 1
                assert pool.returned in ([INVALIDATED], pool.borrowed)
                pool.borrowed.clear()
                pool.returned.clear()
                assert await plain.get_by_id(*given.key) == given.process
                assert await plain.get_audit_trail(*given.key) == [given.asked, given.asked_too]
                for again in OPERATIONS.values():
                    await again(repository, given, None)
                    pool.assert_as_it_came(times=1)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("method", ["update", "advance", "get_by_id"])
async def test_a_cancellation_at_any_point_does_not_bring_back_a_changed_connection(
    application_url: str, plain: Repository, method: str, *, busy: bool
) -> None:
    """If the event loop was busy, psycopg lets other tasks run more often than usual."""

    def keep_busy(*_: object) -> None:
        time.sleep(LONG)

    async with engine_of(made(), application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        if busy:
            event.listen(engine.sync_engine, "begin", keep_busy)
            event.listen(engine.sync_engine, "after_cursor_execute", keep_busy)
        for delay in range(1 if busy else 6):  # turns of the loop, in which what is awaited may come
            point, is_over = 0, False
            while not is_over:
                point += 1
                given = await given_process(plain)
                cancelled = Cancelled(as_none(OPERATIONS[method](repository, given, None)), point, delay)
                await asyncio.wait([asyncio.ensure_future(as_none(cancelled))])
                is_over = cancelled.waits < point
                assert len(pool.returned) == len(pool.borrowed)
                for borrowed, returned in zip(pool.borrowed, pool.returned, strict=True):
                    assert returned in (borrowed, INVALIDATED)
                    assert borrowed[0] is False
            assert point > 1


async def test_a_connection_that_cannot_be_handed_back_as_it_came_is_closed(
    application_url: str, plain: Repository
) -> None:
    """Here a listener has begun a transaction that nobody knows of. What was done in it is lost: an error."""

    def begin(_connection: object, cursor: Any, *_: object) -> None:
        cursor.execute("BEGIN")

    async with engine_of(made(), application_url) as engine:
        pool, repository, given = watched(engine), PostgresProcessRepository(engine), await given_process(plain)
        before = given.process.model_copy(deep=True)
        event.listen(engine.sync_engine, "before_cursor_execute", begin)
        with pytest.raises(InvalidRequestError):
            await repository.update(given.process)
        assert pool.returned == [INVALIDATED]
        assert given.process == before == await plain.get_by_id(*given.key)
        event.remove(engine.sync_engine, "before_cursor_execute", begin)
        pool.borrowed.clear()
        pool.returned.clear()
        await repository.update(given.process)
        pool.assert_as_it_came(times=1)


async def test_a_connection_that_was_not_started_is_an_error(application_url: str, plain: Repository) -> None:
    given = await given_process(plain)
    async with engine_of(made(), application_url) as engine:
        repository = PostgresProcessRepository(engine)
        with pytest.raises(AsyncContextNotStarted):
            await repository.get_by_id(*given.key, engine.connect())
        async with engine.connect() as conn:
            pass
        with pytest.raises(InvalidRequestError):
            await repository.get_by_id(*given.key, conn)


@pytest.mark.parametrize("name", ["as it comes", "AUTOCOMMIT", "NullPool", "StaticPool", "pool_pre_ping"])
async def test_a_connection_that_is_cut_in_the_middle(
    application_url: str, administrator: AsyncEngine, plain: Repository, name: str, subtests: pytest.Subtests
) -> None:
    """The error is SQLAlchemy's, as it was before the connection was to be handed back; the next call has a new one."""
    cut = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        for method, operation in WAITING.items():
            with subtests.test(method):
                given = await given_process(plain)
                async with administrator.connect() as holder:
                    await holder.execute(text("LOCK TABLE commandbus.process, commandbus.process_audit"))
                    task = asyncio.ensure_future(operation(repository, given, None))
                    await is_waiting_for_a_lock(administrator)
                    await holder.execute(cut)
                    [error] = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(error, DBAPIError)
                assert error.connection_invalidated
                assert isinstance(error.orig, psycopg.errors.AdminShutdown)
                assert pool.returned == [INVALIDATED]
                pool.borrowed.clear()
                pool.returned.clear()
                await operation(repository, given, None)
                pool.assert_as_it_came(times=1)
