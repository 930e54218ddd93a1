"""A standby answers every read as its primary does, and refuses every write and every lock with one error."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, event, text
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError, NotSupportedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessFilter,
    ProcessRepository,
    ProcessRetention,
    ProcessStatus,
    ReadOnlyServerError,
    run_in_transaction,
)
from commandbus_process.postgres._transaction import psycopg_connection
from tests.faults.replicas import Replicas
from tests.faults.servers import KillableServer
from tests.support.databases import async_url
from tests.support.items import new_process
from tests.support.operations import INVALIDATED, WRITING, Given, Operation, command, given_process, reply_to, watched

Repository = PostgresProcessRepository[JsonObject]
Read: TypeAlias = Callable[[AsyncEngine, Given, AsyncConnection | None], Awaitable[object]]

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def wanted(given: Given) -> ProcessFilter:
    return ProcessFilter(domain=given.process.domain)


async def streamed(
    engine: AsyncEngine, given: Given, conn: AsyncConnection | None, *, consistent: bool
) -> list[object]:
    queries = PostgresProcessQueries(engine)
    async with queries.stream(wanted(given), conn, consistent=consistent) as processes:
        return [process async for process in processes]


async def purged(engine: AsyncEngine, given: Given, _conn: AsyncConnection | None) -> list[object]:
    return [each async for each in ProcessRetention(engine).purge(given.process.domain, ended_before=LATER)]


async def claimed(engine: AsyncEngine, given: Given, conn: AsyncConnection | None) -> object:
    assert conn is not None
    return await Repository(engine).claim(given.key[0], [ProcessStatus.PENDING], conn, limit=1)


def locking(lock: Literal[True, "nowait", "skip_locked"]) -> Read:
    return lambda engine, given, conn: Repository(engine).get_by_id(*given.key, conn, for_update=lock)


def of_repository(operation: Operation) -> Read:
    return lambda engine, given, conn: operation(Repository(engine), given, conn)


LOCKS: tuple[Literal[True], Literal["nowait"], Literal["skip_locked"]] = (True, "nowait", "skip_locked")
READS: dict[str, Read] = {
    "get_by_id": lambda engine, given, conn: Repository(engine).get_by_id(*given.key, conn),
    "get_by_ids": lambda engine, given, conn: Repository(engine).get_by_ids(given.key[0], [given.key[1]], conn),
    "find_by_status": lambda engine, given, conn: Repository(engine).find_by_status(
        given.key[0], list(ProcessStatus), conn
    ),
    "get_audit_trail": lambda engine, given, conn: Repository(engine).get_audit_trail(*given.key, conn),
    "get_completed_steps": lambda engine, given, conn: Repository(engine).get_completed_steps(*given.key, conn),
    "get_steps_to_compensate": lambda engine, given, conn: Repository(engine).get_steps_to_compensate(
        *given.key, conn, include_unknown=True
    ),
    "page": lambda engine, given, conn: PostgresProcessQueries(engine).page(wanted(given), conn, steps=True),
    "stream": lambda engine, given, conn: streamed(engine, given, conn, consistent=False),
    "stream, consistent": lambda engine, given, conn: streamed(engine, given, conn, consistent=True),
    "count": lambda engine, given, conn: PostgresProcessQueries(engine).count(wanted(given), conn),
    "backlog": lambda engine, given, conn: PostgresProcessQueries(engine).backlog(given.key[0], conn),
    "step_statistics": lambda engine, given, conn: PostgresProcessQueries(engine).step_statistics(
        ProcessFilter(domain=given.key[0], statuses=[ProcessStatus.PENDING]), conn
    ),
    "open_steps": lambda engine, given, conn: PostgresProcessQueries(engine).open_steps(wanted(given), conn),
    "preview": lambda engine, given, conn: ProcessRetention(engine).preview(given.key[0], conn, ended_before=LATER),
}
ON_A_CONNECTION: dict[str, Read] = {
    "claim": claimed,
    **{f"get_by_id, for_update={lock}": locking(lock) for lock in LOCKS},
}
BULK: dict[str, Read] = {
    "save_many": lambda engine, _, conn: Repository(engine).save_many([new_process()], conn),
    "log_many": lambda engine, given, conn: Repository(engine).log_many([(*given.key, command())], conn),
}
WITHOUT_A_CONNECTION: dict[str, Read] = {"purge": purged}
WRITES: dict[str, Read] = {
    **{name: of_repository(operation) for name, operation in WRITING.items()},
    **BULK,
    "erase": lambda engine, given, conn: ProcessRetention(engine).erase(*given.key, conn),
}


@pytest.fixture(scope="module")
async def given(own_replicas: Replicas) -> Given:
    """A process with two steps, of which one has its reply, on both servers. Some tests update it."""
    async with engine_of(own_replicas.primary) as engine:
        given = await given_process(Repository(engine))
        await Repository(engine).update_step_reply(*given.key, given.asked.command_id, reply_to(given.asked))
    own_replicas.catch_up()
    return given


@pytest.fixture
async def primary(pair: Replicas) -> AsyncIterator[AsyncEngine]:
    async with engine_of(pair.primary) as engine:
        yield engine


@pytest.fixture
async def standby(pair: Replicas) -> AsyncIterator[AsyncEngine]:
    async with engine_of(pair.standby) as engine:
        yield engine


@asynccontextmanager
async def engine_of(server: KillableServer, **options: Any) -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine(async_url(server.application_url), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


def test_no_method_is_left_out() -> None:
    told = {name.split(",")[0] for name in (*READS, *WRITES, *ON_A_CONNECTION, *WITHOUT_A_CONNECTION)}
    classes = (ProcessRepository, PostgresProcessQueries, ProcessRetention)
    assert told == {name for each in classes for name in vars(each) if not name.startswith("_")}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "REPEATABLE READ"])
async def test_a_read_answers_as_on_the_primary(
    pair: Replicas, primary: AsyncEngine, standby: AsyncEngine, given: Given, read: Read, isolation_level: str
) -> None:
    pair.catch_up()
    expected = await read(primary, given, None)
    assert await read(standby, given, None) == expected
    async with standby.connect() as conn:
        await conn.execution_options(isolation_level=isolation_level)
        assert await read(standby, given, conn) == expected


async def test_serializable_transactions_are_refused_by_the_server(pair: Replicas, given: Given) -> None:
    """A standby has no SERIALIZABLE. SQLAlchemy cannot even connect."""
    async with engine_of(pair.standby, isolation_level="SERIALIZABLE") as engine:
        for read in READS.values():
            with pytest.raises(NotSupportedError, match="cannot use serializable mode in a hot standby"):
                await read(engine, given, None)


@pytest.mark.parametrize("write", (WRITES | WITHOUT_A_CONNECTION).values(), ids=WRITES | WITHOUT_A_CONNECTION)
async def test_a_write_without_a_connection_is_refused_and_leaves_the_server(
    standby: AsyncEngine, given: Given, write: Read
) -> None:
    pool = watched(standby)
    with pytest.raises(ReadOnlyServerError) as caught:
        await write(standby, given, None)
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert pool.returned == [INVALIDATED]


@pytest.mark.parametrize("write", (WRITES | ON_A_CONNECTION).values(), ids=WRITES | ON_A_CONNECTION)
async def test_a_write_on_a_connection_is_refused_and_the_connection_is_left_to_the_caller(
    standby: AsyncEngine, given: Given, write: Read
) -> None:
    async with standby.connect() as conn:
        await conn.execute(text("SELECT 1"))
        before = conn.sync_connection
        assert before is not None
        driver = psycopg_connection(before)
        with pytest.raises(ReadOnlyServerError):
            await write(standby, given, conn)
        assert psycopg_connection(before) is driver
        alive = write in BULK.values()
        expected = TransactionStatus.INTRANS if alive else TransactionStatus.INERROR
        assert driver.info.transaction_status is expected
        await conn.rollback()


def hear(_connection: Connection) -> None:
    """Listen, and do nothing."""


@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "AUTOCOMMIT"])
async def test_an_engine_with_a_listener_or_in_autocommit_leaves_the_server_too(
    pair: Replicas, given: Given, isolation_level: str
) -> None:
    """Then the library keeps the real transaction, or the engine's autocommit."""
    async with engine_of(pair.standby, isolation_level=isolation_level) as engine:
        event.listen(engine.sync_engine, "commit", hear)
        pool = watched(engine)
        for write in (*WRITES.values(), *WITHOUT_A_CONNECTION.values()):
            with pytest.raises(ReadOnlyServerError):
                await write(engine, given, None)
        assert pool.returned == [INVALIDATED] * (len(WRITES) + 1)


@asynccontextmanager
async def moving_engine(pair: Replicas, **options: Any) -> AsyncGenerator[AsyncEngine]:
    """An engine whose first connection leads to the standby, and the next ones to the primary.

    So it is after a failover behind a name or a proxy.
    """
    urls = [pair.standby.application_url]

    def redirect(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        if not urls:
            parameters["host"] = str(pair.primary.socket.parent)
        urls.clear()

    async with engine_of(pair.standby, **options) as engine:
        event.listen(engine.sync_engine, "do_connect", redirect)
        yield engine


async def test_a_write_that_is_tried_again_reaches_the_new_primary(pair: Replicas, given: Given) -> None:
    """`pool_pre_ping` alone would keep the connection for ever: it works."""
    async with moving_engine(pair, pool_pre_ping=True) as engine:
        with pytest.raises(ReadOnlyServerError):
            await Repository(engine).update(given.process)
        await Repository(engine).update(given.process)


async def of_the_library(engine: AsyncEngine, given: Given, conn: AsyncConnection) -> None:
    await Repository(engine).update(given.process, conn)


async def of_the_caller(_engine: AsyncEngine, given: Given, conn: AsyncConnection) -> None:
    await conn.execute(text("SELECT FROM commandbus.process WHERE process_id = :id FOR UPDATE"), {"id": given.key[1]})


@pytest.mark.parametrize("statement", [of_the_library, of_the_caller])
async def test_a_transaction_is_run_again_on_the_new_primary(
    pair: Replicas, given: Given, statement: Callable[[AsyncEngine, Given, AsyncConnection], Awaitable[None]]
) -> None:
    async with moving_engine(pair, pool_pre_ping=True) as engine:
        await run_in_transaction(engine, lambda conn: statement(engine, given, conn), attempts=2)


@pytest.mark.parametrize("statement", [of_the_library, of_the_caller])
async def test_a_transaction_that_finds_no_primary_ends_in_this_error(
    standby: AsyncEngine, given: Given, statement: Callable[[AsyncEngine, Given, AsyncConnection], Awaitable[None]]
) -> None:
    with pytest.raises(ReadOnlyServerError):
        await run_in_transaction(standby, lambda conn: statement(standby, given, conn), attempts=2)


async def test_a_listener_makes_the_callers_connection_leave_the_server(pair: Replicas, given: Given) -> None:
    """The one of docs/production.md."""

    def leave_read_only_server(context: ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlstate", None) == "25006":
            context.is_disconnect = True

    async with moving_engine(pair, pool_pre_ping=True) as engine:
        event.listen(engine.sync_engine, "handle_error", leave_read_only_server)
        async with engine.connect() as conn:
            with pytest.raises(ReadOnlyServerError):
                await Repository(engine).update(given.process, conn)
        async with engine.begin() as conn:
            await Repository(engine).update(given.process, conn)


async def test_a_read_only_transaction_on_the_primary_keeps_its_connection(pair: Replicas, given: Given) -> None:
    """Another connection would be no better."""
    async with engine_of(pair.primary) as engine:
        read_only = engine.execution_options(postgresql_readonly=True)
        pool = watched(engine)
        with pytest.raises(ReadOnlyServerError):
            await Repository(read_only).update(given.process)
        pool.assert_as_it_came(1)


async def test_a_server_that_was_made_read_only_is_left(pair: Replicas, given: Given) -> None:
    """As some do with the old primary before they move away from it."""
    options = {"options": "-crole=commandbus_application -cdefault_transaction_read_only=on"}
    async with engine_of(pair.primary, connect_args=options) as engine:
        pool = watched(engine)
        with pytest.raises(ReadOnlyServerError):
            await Repository(engine).update(given.process)
        assert pool.returned == [INVALIDATED]


async def test_the_error_quotes_no_state_and_no_address(standby: AsyncEngine, given: Given) -> None:
    process = given.process.model_copy(update={"state": {"secret": "only in the state"}})
    with pytest.raises(ReadOnlyServerError) as caught:
        await Repository(standby).update(process)
    for part in ("only in the state", str(standby.url.query["host"])):
        assert part not in str(caught.value)
