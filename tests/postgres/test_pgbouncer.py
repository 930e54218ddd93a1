"""Behind PgBouncer in transaction mode, with the engine settings that the README names.

It serves each transaction from the other one of two connections. The contract runs behind it too.
"""

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import PostgresProcessRepository
from commandbus_process.migrations import alembic_config
from tests.support.databases import Server, as_role, async_url, execute
from tests.support.items import DOMAIN, new_process
from tests.support.pgbouncer import (
    BACKEND,
    NOT_PREPARING,
    PREPARING,
    UNPREPARED,
    PgBouncer,
    login_role,
    running_pgbouncer,
    version,
)

WORKING = [pytest.param(NOT_PREPARING, UNPREPARED, id="nobody prepares")]
if version() >= (1, 22):
    WORKING.append(pytest.param(PREPARING, {}, id="PgBouncer prepares"))


@pytest.fixture
def application_url(pgbouncer: PgBouncer, database_url: str) -> str:
    return pgbouncer.in_front_of(database_url)


@pytest.fixture
async def engine(application_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(application_url), connect_args=UNPREPARED)
    yield engine
    await engine.dispose()


async def backend(connection: AsyncConnection) -> int:
    pid: int = (await connection.execute(text(BACKEND))).scalar_one()
    return pid


async def read_often(url: str, connect_args: dict[str, Any]) -> set[int]:
    """Read one process in each of many transactions; returns the connections to the server that served them."""
    engine = create_async_engine(async_url(url), connect_args=connect_args)
    repository = PostgresProcessRepository(engine)
    process = new_process()
    served_by: set[int] = set()
    try:
        await repository.save(process)
        for _ in range(20):  # psycopg prepares on the sixth time
            async with engine.begin() as connection:
                assert await repository.get_by_id(DOMAIN, process.process_id, connection) == process
                served_by.add(await backend(connection))
    finally:
        await engine.dispose()
    return served_by


@pytest.mark.parametrize(("settings", "connect_args"), WORKING)
async def test_the_documented_settings_work(
    newest_server: Server, login: str, database_url: str, settings: list[str], connect_args: dict[str, Any]
) -> None:
    with running_pgbouncer(newest_server.url, login, *settings) as running:
        assert len(await read_often(running.in_front_of(database_url), connect_args)) == 2


async def test_without_them_a_prepared_statement_is_missed_on_the_other_connection(application_url: str) -> None:
    with pytest.raises(DBAPIError) as caught:
        await read_often(application_url, {})
    assert isinstance(caught.value.orig, psycopg.errors.InvalidSqlStatementName)


async def test_an_isolation_level_is_the_transactions_own(application_url: str) -> None:
    levels = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
    engine = create_async_engine(async_url(application_url), connect_args=UNPREPARED)
    try:
        served: set[tuple[str, int]] = set()
        for _ in range(2):
            for level in levels:  # an odd number, so that each meets both connections
                async with engine.connect() as connection:
                    await connection.execution_options(isolation_level=level)
                    found = (await connection.execute(text("SHOW transaction_isolation"))).scalar_one()
                    assert found == level.lower()
                    served.add((level, await backend(connection)))
        assert len(served) == 2 * len(levels)
    finally:
        await engine.dispose()


async def test_fewer_connections_to_the_server_than_clients(engine: AsyncEngine, application_url: str) -> None:
    clients = [await psycopg.AsyncConnection.connect(application_url, prepare_threshold=None) for _ in range(10)]
    try:
        served_by: set[object] = set()
        for client in clients:
            async with client.transaction():
                served_by.add(await (await client.execute(BACKEND)).fetchone())
        async with engine.connect() as connection:
            served_by.add((await backend(connection),))
        assert len(served_by) == 2
    finally:
        for client in clients:
            await client.close()


def test_settings_in_the_options_of_a_connection_are_refused(application_url: str, newest_server: Server) -> None:
    """A role, a search path or a timeout belongs to the role that logs in: ALTER ROLE … SET."""
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        psycopg.connect(as_role(application_url, newest_server.application))


@pytest.mark.usefixtures("login")
def test_migrations_go_through_it_as_they_are(newest_server: Server, empty_database_url: str) -> None:
    database = make_url(empty_database_url).database
    execute(empty_database_url, f"GRANT CREATE ON DATABASE {database} TO {newest_server.migrator}")
    with (
        login_role(newest_server.url, newest_server.migrator) as role,
        running_pgbouncer(newest_server.url, role, *NOT_PREPARING) as running,
    ):
        config = alembic_config(running.in_front_of(empty_database_url))
        try:
            for _ in range(2):
                command.upgrade(config, "head")
                command.check(config)
                command.downgrade(config, "base")
        finally:
            execute(empty_database_url, f"DROP OWNED BY {role}")
