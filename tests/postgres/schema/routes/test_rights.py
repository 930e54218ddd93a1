"""Grants and guards of a schema with any name."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import PostgresProcessRepository, ProcessRetention
from commandbus_process.grants import grant_statements
from commandbus_process.grants import main as print_grants
from commandbus_process.guards import guard_statements
from commandbus_process.guards import main as print_guards
from commandbus_process.migrations import check_schema, downgrade, migrate
from commandbus_process.tables import process as process_table
from tests.support.databases import Server, as_role, async_url, execute
from tests.support.everything import do_everything
from tests.support.items import DOMAIN, NOON, new_process

UGLY = 'Ugly "schema".50%s :x é $$ \' \\'


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(empty_database_url))
    await migrate(engine, schema=UGLY)
    yield engine
    await engine.dispose()


async def test_each_role_has_what_it_needs_and_no_more(
    empty: AsyncEngine, empty_database_url: str, server: Server
) -> None:
    del empty
    engines: dict[str, AsyncEngine] = {}
    for purpose in ("application", "reader", "purger"):
        role = getattr(server, purpose)
        execute(empty_database_url, "; ".join(grant_statements(role, purpose, schema=UGLY)))
        engines[purpose] = create_async_engine(async_url(as_role(empty_database_url, role)))
        await check_schema(engines[purpose], schema=UGLY)
    await do_everything(engines["application"], UGLY)
    with pytest.raises(ProgrammingError, match="permission denied"):
        await PostgresProcessRepository(engines["reader"], schema=UGLY).save(new_process())
    async for progress in ProcessRetention(engines["purger"], schema=UGLY).purge(DOMAIN, ended_before=NOON):
        assert progress.processes == 0
    for engine in engines.values():
        await engine.dispose()


async def test_the_guards_hold_and_are_removed_by_a_downgrade(empty: AsyncEngine, empty_database_url: str) -> None:
    for _ in range(2):
        execute(empty_database_url, ";\n".join(guard_statements(schema=UGLY)))
    await do_everything(empty, UGLY)
    process = new_process()
    await PostgresProcessRepository(empty, schema=UGLY).save(process)
    mapped = empty.execution_options(schema_translate_map={"commandbus": UGLY})
    for statement in (process_table.delete(), process_table.update().values(process_type="other")):
        with pytest.raises(IntegrityError, match="cannot be"):
            async with mapped.begin() as conn:
                await conn.execute(statement)
    execute(empty_database_url, ";\n".join(guard_statements(remove=True, schema=UGLY)))
    execute(empty_database_url, ";\n".join(guard_statements(schema=UGLY)))
    async with empty.begin() as conn:
        await conn.run_sync(downgrade, "4", schema=UGLY)
    await migrate(empty, schema=UGLY)
    async with mapped.begin() as conn:
        await conn.execute(process_table.update().values(process_type="other"))


@pytest.mark.parametrize("command", [print_grants, print_guards], ids=["grants", "guards"])
def test_a_name_that_no_schema_can_have(capsys: pytest.CaptureFixture[str], command: object) -> None:
    arguments = ["role"] if command is print_grants else []
    assert callable(command)
    assert command([*arguments, "--schema", "pg_x"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "schema: is the server's own\n")
