"""A method without `conn` that loses a race is run again until it wins. A wait that a time-out ends is a lock."""

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessLockedError,
    ProcessMetadata,
    ProcessStatus,
)
from commandbus_process.postgres._transaction import ATTEMPTS
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process

Repository = PostgresProcessRepository[JsonObject]

CONNECTIONS = 20


@pytest.fixture
async def crowd(application_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine with many connections, whose transactions are SERIALIZABLE."""
    engine = create_async_engine(
        async_url(application_url), isolation_level="SERIALIZABLE", pool_size=CONNECTIONS, max_overflow=0
    )
    yield engine
    await engine.dispose()


async def hot_update(repository: Repository, process: ProcessMetadata) -> None:
    """Whatever the version: each of these can only lose to the server's check of serializable transactions."""
    await repository.update(process.model_copy(deep=True, update={"version": None}))


async def hot_step(repository: Repository, process: ProcessMetadata) -> None:
    """Read, change, write; after a lost race, again: that takes as many rounds as others get on in between."""
    while True:
        found = await repository.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        try:
            await repository.update(found)
        except ConcurrentUpdateError as error:
            assert error.actual_version is not None, "the attempts were used up"  # noqa: PT017 - the loop goes on
        else:
            return


@pytest.mark.own_database
@pytest.mark.parametrize(("operation", "times"), [(hot_update, 40), (hot_step, 5)])
async def test_twenty_connections_on_one_hot_process(
    crowd: AsyncEngine,
    caplog: pytest.LogCaptureFixture,
    operation: Callable[[Repository, ProcessMetadata], Awaitable[None]],
    times: int,
) -> None:
    caplog.set_level(logging.DEBUG, "commandbus_process")
    repository, process = Repository(crowd), new_process()
    await repository.save(process)

    async def worker() -> None:
        for _ in range(times):
            await operation(repository, process)

    async with asyncio.timeout(120):
        await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert found.version == 1 + CONNECTIONS * times
    attempts = [getattr(record, "attempt", 0) for record in caplog.records]
    assert attempts  # else nobody lost, and nothing was proved
    # Half of the limit is far away for all but one operation in a hundred, also on a busy machine.
    assert attempts.count(ATTEMPTS // 2) <= CONNECTIONS * times // 100


Call = Callable[[Repository, ProcessMetadata, AsyncConnection], Awaitable[object]]

WITHOUT_A_KEY: dict[str, Call] = {
    "find_by_status": lambda repository, _, conn: repository.find_by_status(DOMAIN, list(ProcessStatus), conn),
    "claim": lambda repository, _, conn: repository.claim(DOMAIN, list(ProcessStatus), conn, limit=3),
    "claim by version": lambda repository, _, conn: repository.claim(
        DOMAIN, list(ProcessStatus), conn, limit=3, by="version"
    ),
}
WITH_A_KEY: dict[str, Call] = {
    "get_by_id": lambda repository, process, conn: repository.get_by_id(DOMAIN, process.process_id, conn),
    "update": lambda repository, process, conn: repository.update(process, conn),
    "log_step": lambda repository, process, conn: repository.log_step(
        DOMAIN,
        process.process_id,
        ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge"),
        conn,
    ),
}


@pytest.mark.parametrize("call", WITHOUT_A_KEY.values(), ids=WITHOUT_A_KEY)
async def test_a_lock_timeout_where_there_is_no_single_process(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata, call: Call
) -> None:
    await repository.save(process)
    async with administrator.begin() as holder, engine.connect() as conn:
        await holder.execute(text("LOCK TABLE commandbus.process"))
        await conn.execute(text("SET LOCAL lock_timeout = '10ms'"))
        with pytest.raises(ProcessLockedError) as caught:
            await call(repository, process, conn)
    assert (caught.value.domain, caught.value.process_id) == (None, None)
    assert caught.value.retryable
    assert str(caught.value) == "a process is locked by another transaction; try again later"
    assert isinstance(caught.value.__cause__, DBAPIError)


@pytest.mark.parametrize("call", WITH_A_KEY.values(), ids=WITH_A_KEY)
async def test_a_lock_timeout_where_there_is_one(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata, call: Call
) -> None:
    await repository.save(process)
    async with administrator.begin() as holder, engine.connect() as conn:
        await holder.execute(text("LOCK TABLE commandbus.process, commandbus.process_audit"))
        await conn.execute(text("SET LOCAL lock_timeout = '10ms'"))
        with pytest.raises(ProcessLockedError) as caught:
            await call(repository, process, conn)
    assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)


async def test_a_lock_timeout_of_the_session_ends_a_method_without_a_connection_at_once(
    application_url: str, administrator: AsyncEngine, repository: Repository, process: ProcessMetadata
) -> None:
    """The library does not wait a second time: the engine's owner has set how long a wait may be."""
    await repository.save(process)
    executed: list[object] = []
    engine = create_async_engine(async_url(application_url))
    own = Repository(engine)
    try:
        async with engine.begin() as conn:
            await conn.execute(text("SET lock_timeout = '10ms'"))
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *arguments: executed.append(arguments))
        async with administrator.begin() as holder:
            await holder.execute(text("LOCK TABLE commandbus.process"))
            with pytest.raises(ProcessLockedError):
                await own.find_by_status(DOMAIN, list(ProcessStatus))
        assert len(executed) == 1
    finally:
        await engine.dispose()


@pytest.mark.parametrize("call", (WITHOUT_A_KEY | WITH_A_KEY).values(), ids=WITHOUT_A_KEY | WITH_A_KEY)
async def test_a_statement_timeout_passes_as_sqlalchemy_raises_it(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata, call: Call
) -> None:
    await repository.save(process)
    async with administrator.begin() as holder, engine.connect() as conn:
        await holder.execute(text("LOCK TABLE commandbus.process, commandbus.process_audit"))
        await conn.execute(text("SET LOCAL statement_timeout = '10ms'"))
        with pytest.raises(DBAPIError) as caught:
            await call(repository, process, conn)
    assert isinstance(caught.value.orig, psycopg.errors.QueryCanceled)


async def test_a_cancelled_backend_passes_as_sqlalchemy_raises_it(
    repository: Repository, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    waiting = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with administrator.begin() as holder, administrator.connect() as watcher:
        await holder.execute(text("LOCK TABLE commandbus.process"))
        task = asyncio.ensure_future(repository.update(process))
        async with asyncio.timeout(30):
            while not (await watcher.execute(text(f"SELECT pg_cancel_backend(pid) {waiting}"))).all():
                await watcher.rollback()
        with pytest.raises(DBAPIError) as caught:
            await task
    assert isinstance(caught.value.orig, psycopg.errors.QueryCanceled)


def test_the_error_without_a_process_is_copied_as_it_is() -> None:
    """As all errors are; the attributes are there, and `None`."""
    error: Any = copy.copy(ProcessLockedError())
    assert (error.domain, error.process_id, error.retryable) == (None, None, True)
