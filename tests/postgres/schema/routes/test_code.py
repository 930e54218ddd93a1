"""The migrations from code: on an engine, on a connection, in any schema; and what is refused."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic.util import CommandError
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from commandbus_process import InvalidInputError
from commandbus_process.migrations import current, differences, downgrade, migrate, stamp, upgrade
from commandbus_process.tables import REVISION
from tests.support.databases import async_url, execute
from tests.support.everything import do_everything
from tests.support.schema import described, revision_of, seed

UGLY = 'Ugly "schema".50%s :x é $$'
SCHEMAS = ["commandbus", "other", UGLY]


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(empty_database_url))
    yield engine
    await engine.dispose()


async def found_in(engine: AsyncEngine, schema: str) -> tuple[str | None, list[str]]:
    async with engine.begin() as conn:
        return await conn.run_sync(current, schema=schema), await conn.run_sync(differences, schema=schema)


@pytest.mark.parametrize("way", ["engine", "connection"])
@pytest.mark.parametrize("schema", SCHEMAS)
async def test_up_down_and_up_again_in_any_schema(empty: AsyncEngine, schema: str, way: str) -> None:
    async def up() -> None:
        if way == "engine":
            await migrate(empty, schema=schema)
        else:
            async with empty.begin() as conn:
                await migrate(conn, schema=schema)

    await up()
    assert await found_in(empty, schema) == (REVISION, [])
    await do_everything(empty, schema)
    async with empty.begin() as conn:
        await conn.run_sync(downgrade, "base", schema=schema)
        assert await conn.run_sync(current, schema=schema) is None
    await up()
    await up()
    assert await found_in(empty, schema) == (REVISION, [])
    async with empty.connect() as conn:
        schemas = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$'"
        assert list(await conn.scalars(text(schemas))) == [schema]


async def test_two_schemas_in_one_database(empty: AsyncEngine) -> None:
    await migrate(empty, "commandbus_0003", schema=UGLY)
    await migrate(empty, schema="other")
    assert (await found_in(empty, UGLY))[0] == "commandbus_0003"
    assert (await found_in(empty, "other")) == (REVISION, [])
    async with empty.begin() as conn:
        await conn.run_sync(downgrade, "base", schema="other")
    assert (await found_in(empty, UGLY))[0] == "commandbus_0003"
    await migrate(empty, schema=UGLY)
    await do_everything(empty, UGLY)


@pytest.mark.parametrize("schema", ["commandbus", UGLY])
async def test_indexes_are_built_concurrently_in_tables_with_rows(empty: AsyncEngine, schema: str) -> None:
    await migrate(empty, "commandbus_0004", schema=schema)
    quoted = f'"{schema}"' if schema == "commandbus" else '"Ugly ""schema"".50%s :x é $$"'
    sent: list[str] = []

    def listen(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    async with empty.begin() as conn:
        await conn.exec_driver_sql(
            f"INSERT INTO {quoted.replace('%', '%%')}.process (domain, process_id, process_type) "
            "VALUES ('orders', gen_random_uuid(), 'order')"
        )
    event.listen(empty.sync_engine, "before_cursor_execute", listen)
    await migrate(empty, schema=schema)
    assert sum("CREATE INDEX CONCURRENTLY" in statement for statement in sent) == 2
    assert await found_in(empty, schema) == (REVISION, [])


async def test_eight_at_once_in_one_loop(empty: AsyncEngine) -> None:
    engines = [create_async_engine(empty.url) for _ in range(8)]
    await asyncio.gather(*(migrate(engine) for engine in engines))
    for engine in engines:
        await engine.dispose()
    assert await found_in(empty, "commandbus") == (REVISION, [])


async def test_an_engine_in_autocommit_migrates_each_revision_as_a_whole(empty: AsyncEngine) -> None:
    engine = empty.execution_options(isolation_level="AUTOCOMMIT")
    async with empty.begin() as conn:
        await conn.run_sync(seed_by_hand)
        await conn.run_sync(stamp, "1")
    with pytest.raises(CommandError, match="logged more than once"):
        await migrate(engine)
    assert (await found_in(empty, "commandbus"))[0] == "commandbus_0001"
    async with empty.connect() as conn:
        assert (
            await conn.scalar(text("SELECT count(*) FROM pg_attribute WHERE attname = 'version' AND attrelid > 16384"))
            == 0
        )


def seed_by_hand(connection: Any) -> None:
    seed(connection.engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.exec_driver_sql("UPDATE commandbus.process_audit SET command_id = gen_random_uuid()")
    connection.exec_driver_sql(
        "INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at) "
        "SELECT domain, process_id, step_name, command_id, command_type, sent_at FROM commandbus.process_audit"
    )


async def test_the_callers_transaction_is_the_callers(empty: AsyncEngine, empty_database_url: str) -> None:
    async with empty.connect() as conn:
        await conn.begin()
        await conn.exec_driver_sql("SET LOCAL search_path TO public, pg_catalog")
        await migrate(conn)
        assert await conn.scalar(text("SHOW search_path")) == "public, pg_catalog"
        assert conn.in_transaction()
        await conn.rollback()
    assert not any(described(empty_database_url).values())


async def test_a_database_with_the_old_names_of_revisions(empty: AsyncEngine, empty_database_url: str) -> None:
    version_table = "commandbus.commandbus_process_version"
    await migrate(empty, "commandbus_0003")
    execute(empty_database_url, f"UPDATE {version_table} SET version_num = '0003'")
    assert (await found_in(empty, "commandbus"))[0] == "commandbus_0003"
    await migrate(empty)
    assert revision_of(empty_database_url) == REVISION
    execute(empty_database_url, f"UPDATE {version_table} SET version_num = '0005'")
    async with empty.begin() as conn:
        await conn.run_sync(downgrade, "0004")
    assert revision_of(empty_database_url) == "commandbus_0004"


async def test_a_connection_without_a_transaction_is_refused(empty: AsyncEngine, empty_database_url: str) -> None:
    async with empty.connect() as conn:
        with pytest.raises(InvalidInputError, match="has no transaction, so nothing would be kept"):
            await migrate(conn)
    engine = create_engine(async_url(empty_database_url))
    with engine.connect() as connection, pytest.raises(InvalidInputError, match="has no transaction"):
        upgrade(connection)
    engine.dispose()


async def test_a_connection_in_autocommit_is_refused(empty: AsyncEngine) -> None:
    async with empty.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        await conn.begin()
        with pytest.raises(InvalidInputError, match="is in autocommit"):
            await migrate(conn)


async def test_the_wrong_kind_is_refused_with_what_to_do(empty: AsyncEngine, empty_database_url: str) -> None:
    wrong: Any
    for wrong, told in ((empty.sync_engine, "AsyncEngine or an AsyncConnection, not Engine"), ("url", "not str")):
        with pytest.raises(TypeError, match=told):
            await migrate(wrong)
    async with AsyncSession(empty) as session, empty.connect() as conn:
        for wrong, told in (
            (session, "not AsyncSession; a session has one"),
            (conn, "await migrate"),
            (empty, "engine.begin"),
            (None, "migrations.sql"),
        ):
            with pytest.raises(TypeError, match=told):
                upgrade(wrong)
    with pytest.raises(TypeError, match="not started"):
        await migrate(empty.connect())
    lite = create_engine("sqlite://")
    with lite.begin() as connection, pytest.raises(TypeError, match="PostgreSQL, not to sqlite"):
        upgrade(connection)
    engine = create_engine(async_url(empty_database_url))
    with Session(engine) as of_host, of_host.begin():
        upgrade(of_host.connection())
    engine.dispose()


async def test_an_engine_with_one_connection_is_refused_and_not_waited_for(empty: AsyncEngine) -> None:
    engine = create_async_engine(empty.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with pytest.raises(InvalidInputError, match="a pool of two connections"):
        await migrate(engine)
    await engine.dispose()


@pytest.mark.parametrize("name", ["", "pg_mine", "information_schema", "x" * 64, "é" * 32, "a\0b", "\ud800", 7])
async def test_names_that_no_schema_can_have_are_refused(empty: AsyncEngine, name: Any) -> None:
    with pytest.raises(InvalidInputError, match="schema"):
        await migrate(empty, schema=name)


async def test_a_revision_that_is_not_there(empty: AsyncEngine) -> None:
    with pytest.raises(CommandError, match="commandbus_0099"):
        await migrate(empty, "commandbus_0099")
    await migrate(empty)
    with pytest.raises(CommandError, match="commandbus_0099"):
        async with empty.begin() as conn:
            await conn.run_sync(downgrade, "99")


async def test_the_hosts_logging_is_left_alone(empty: AsyncEngine) -> None:
    logger = logging.getLogger("host.application")
    before = (logging.root.handlers[:], logging.root.level, logging.getLogger("alembic").level, logger.disabled)
    await migrate(empty)
    assert (logging.root.handlers, logging.root.level, logging.getLogger("alembic").level, logger.disabled) == before
