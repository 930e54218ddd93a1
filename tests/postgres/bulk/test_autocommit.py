"""An engine in autocommit gets its connections back in autocommit, however it was set and whatever happened."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import chain, count
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessMetadata,
    ProcessNotFoundError,
)
from commandbus_process.tables import process as process_table
from tests.support.cancelling import Cancelled, completed
from tests.support.items import (
    BATCH,
    DOMAIN,
    bad_process,
    for_process,
    new_entries,
    new_process,
    new_processes,
    numbers,
)
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository[Any]
ONE: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 10}


@pytest.fixture(params=["connect_args", "isolation_level", "option"])
async def in_autocommit(request: pytest.FixtureRequest, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine whose only connection is in autocommit."""
    if request.param == "connect_args":
        made = create_async_engine(engine.url, connect_args={"autocommit": True}, **ONE)
    elif request.param == "isolation_level":
        made = create_async_engine(engine.url, isolation_level="AUTOCOMMIT", **ONE)
    else:
        made = create_async_engine(engine.url, **ONE).execution_options(isolation_level="AUTOCOMMIT")
    yield made
    await made.dispose()


@pytest.fixture
def repository(in_autocommit: AsyncEngine) -> Repository:
    return PostgresProcessRepository(in_autocommit)


async def write_plainly(engine: AsyncEngine) -> None:
    """The host's next write, which takes effect at once."""
    async with engine.connect() as conn:
        await conn.execute(process_table.insert(), {"domain": "host", "process_id": new_process().process_id, **PLAIN})
        await conn.rollback()


PLAIN: dict[str, object] = {"process_type": "order", "state": {}}


async def saved(repository: Repository) -> None:
    assert await repository.save_many(new_processes(3)) == 3


async def logged(repository: Repository) -> None:
    process = new_process()
    await repository.save(process)
    assert await repository.log_many(for_process(DOMAIN, process.process_id, new_entries(3))) == 3


async def conflict(repository: Repository) -> None:
    process = new_process()
    with pytest.raises(ProcessAlreadyExistsError):
        await repository.save_many([process, *new_processes(BATCH), process])


async def refused(repository: Repository) -> None:
    with pytest.raises(InvalidInputError):
        await repository.save_many(chain(new_processes(BATCH + 1), [bad_process(domain="")]))


async def unknown(repository: Repository) -> None:
    with pytest.raises(ProcessNotFoundError):
        await repository.log_many(for_process(DOMAIN, new_process().process_id, new_entries(3)))


CALLS: dict[str, tuple[Callable[[Repository], Awaitable[None]], tuple[int, int]]] = {
    "saved": (saved, (3, 0)),
    "logged": (logged, (1, 3)),
    "conflict": (conflict, (0, 0)),
    "refused": (refused, (0, 0)),
    "unknown": (unknown, (0, 0)),
}


@pytest.mark.parametrize("call", CALLS)
async def test_the_hosts_next_write_takes_effect(
    repository: Repository, in_autocommit: AsyncEngine, engine: AsyncEngine, call: str
) -> None:
    method, (processes, entries) = CALLS[call]
    await method(repository)
    await write_plainly(in_autocommit)
    assert await numbers(engine) == (processes + 1, entries)


async def test_a_transactional_connection_stays_one(engine: AsyncEngine) -> None:
    only = create_async_engine(engine.url, **ONE)
    await saved(PostgresProcessRepository(only))
    await write_plainly(only)
    assert await numbers(engine) == (3, 0)
    await only.dispose()


async def test_cancelled_wherever_it_waits(repository: Repository, in_autocommit: AsyncEngine) -> None:
    cancelled = 0
    for point in count(1):
        operation = Cancelled(saved(repository), point, 0)
        task = asyncio.create_task(completed(operation))
        await asyncio.wait([task])
        cancelled += task.cancelled()
        async with in_autocommit.connect() as conn:
            driver: Any = (await conn.get_raw_connection()).driver_connection
            # With `option`, the pool sets the mode as a connection is lent.
            assert driver.autocommit
        if operation.waits < point:
            break
    assert cancelled > 3


async def test_cancelled_while_it_waits_for_a_lock(
    repository: Repository, in_autocommit: AsyncEngine, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    process = new_process()
    async with engine.connect() as holder:
        await PostgresProcessRepository(engine).save(process, holder)
        task = asyncio.create_task(repository.save_many([process.model_copy()]))
        await is_waiting_for_a_lock(administrator)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await holder.rollback()
    await write_plainly(in_autocommit)
    assert await numbers(engine) == (1, 0)


async def test_the_connection_is_lost(
    repository: Repository, in_autocommit: AsyncEngine, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    async def processes() -> AsyncIterator[ProcessMetadata]:
        for process in new_processes(BATCH + 1):
            yield process
        async with administrator.connect() as conn:
            await conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    with pytest.raises(DBAPIError):
        await repository.save_many(processes())
    await write_plainly(in_autocommit)
    await engine.dispose()
    assert await numbers(engine) == (1, 0)


async def test_a_connection_that_is_lost_after_the_commit_is_no_error(
    repository: Repository, in_autocommit: AsyncEngine, engine: AsyncEngine
) -> None:
    """What was committed is not reported as failed, and nobody gets the connection."""
    drivers: list[Any] = []

    def note(connection: Any) -> None:
        drivers.append(connection.connection.driver_connection)

    event.listen(in_autocommit.sync_engine, "commit", note)
    commit = in_autocommit.dialect.do_commit

    def commit_and_lose(dbapi_connection: Any) -> None:
        commit(dbapi_connection)
        drivers[0].pgconn.finish()

    in_autocommit.dialect.do_commit = commit_and_lose  # type: ignore[method-assign]
    try:
        assert await repository.save_many(new_processes(3)) == 3
    finally:
        in_autocommit.dialect.do_commit = commit  # type: ignore[method-assign]
        event.remove(in_autocommit.sync_engine, "commit", note)
    await write_plainly(in_autocommit)
    assert await numbers(engine) == (4, 0)


async def test_what_begins_with_a_transaction_is_in_the_transaction(
    repository: Repository, in_autocommit: AsyncEngine, engine: AsyncEngine
) -> None:
    """A `begin` listener's SET LOCAL holds for the rows that are written."""
    seen: list[str] = []

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL application_name = 'in the transaction'")

    def ends(connection: Any) -> None:
        seen.append(connection.exec_driver_sql("SHOW application_name").scalar())

    event.listen(in_autocommit.sync_engine, "begin", begun)
    event.listen(in_autocommit.sync_engine, "commit", ends)
    await saved(repository)
    event.remove(in_autocommit.sync_engine, "begin", begun)
    event.remove(in_autocommit.sync_engine, "commit", ends)
    assert seen[0] == "in the transaction"
    assert await numbers(engine) == (3, 0)
