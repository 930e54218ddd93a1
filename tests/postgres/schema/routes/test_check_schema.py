"""Start-up and health checks: older, missing, newer but compatible, too new."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import SchemaError, SchemaTooNewError, SchemaTooOldError
from commandbus_process.migrations import SchemaRevision, check_schema, location, migrate
from commandbus_process.tables import REVISION
from tests.support.databases import Server, as_role, async_url, execute

UGLY = 'Ugly "schema".50%s'


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(empty_database_url))
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("role", ["application", "reader", "purger"])
async def test_every_role_can_check(database_url: str, server: Server, role: str) -> None:
    engine = create_async_engine(async_url(as_role(database_url, getattr(server, role))))
    assert await check_schema(engine) == SchemaRevision(REVISION, REVISION, is_newer=False)
    async with engine.begin() as conn:
        assert await check_schema(conn) == (REVISION, REVISION, False)
    await engine.dispose()


async def test_a_schema_that_is_missing_or_old_and_the_transaction_goes_on(empty: AsyncEngine) -> None:
    async with empty.begin() as conn:
        with pytest.raises(SchemaTooOldError, match=r"has no tables.*migrations upgrade --schema"):
            await check_schema(conn, schema=UGLY)
        assert await conn.scalar(text("SELECT 1")) == 1
    await migrate(empty, "commandbus_0004", schema=UGLY)
    with pytest.raises(SchemaTooOldError, match="is at revision commandbus_0004") as caught:
        await check_schema(empty, schema=UGLY)
    assert (caught.value.found, caught.value.wanted, caught.value.schema) == ("commandbus_0004", REVISION, UGLY)
    await migrate(empty, schema=UGLY)
    assert not (await check_schema(empty, schema=UGLY)).is_newer


async def test_a_role_that_may_not_use_the_schema_is_told_so(empty: AsyncEngine, server: Server) -> None:
    await migrate(empty)
    engine = create_async_engine(async_url(as_role(empty.url.render_as_string(hide_password=False), server.reader)))
    try:
        async with engine.begin() as conn:
            with pytest.raises(SchemaError, match="may not read the version table"):
                await check_schema(conn)
            assert await conn.scalar(text("SELECT 1")) == 1
    finally:
        await engine.dispose()


async def test_old_names_of_revisions_are_recognised(empty: AsyncEngine, empty_database_url: str) -> None:
    await migrate(empty)
    for old, error in (("0005", None), ("0004", SchemaTooOldError)):
        execute(empty_database_url, f"UPDATE commandbus.commandbus_process_version SET version_num = '{old}'")
        if error is None:
            assert (await check_schema(empty)).found == REVISION
        else:
            with pytest.raises(error):
                await check_schema(empty)


NEXT = """
from commandbus_process.migrations._change import Change

revision = "commandbus_0006"
down_revision = "commandbus_0005"

def upgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    {work}
    change.works_with_code_since("{since}")
"""
EXPANDS = 'change.execute("ALTER TABLE {{schema}}.process ADD COLUMN of_tomorrow integer")'.replace("{{", "{").replace(
    "}}", "}"
)
CONTRACTS = 'change.op.drop_column("process", "business_key", schema=change.schema)'


@pytest.mark.parametrize(
    ("work", "since", "works"),
    [(EXPANDS, REVISION, True), (CONTRACTS, "commandbus_0006", False)],
    ids=["expand", "contract"],
)
async def test_a_newer_schema_that_is_compatible_is_told_from_one_that_is_not(
    empty: AsyncEngine,
    empty_database_url: str,
    tmp_path: Path,
    work: str,
    since: str,
    works: bool,  # noqa: FBT001
) -> None:
    """Upgraded by a library of tomorrow, which has one revision more."""
    later = tmp_path / "alembic"
    (later / "versions").mkdir(parents=True)
    for path in (location() / "env.py", *(location() / "versions").glob("*.py")):
        (later / path.relative_to(location())).write_text(path.read_text())
    (later / "versions" / "0006_later.py").write_text(NEXT.replace("{work}", work).replace("{since}", since))
    config = Config()
    config.set_main_option("script_location", str(later).replace("%", "%%"))
    config.attributes["url"] = empty_database_url
    command.upgrade(config, "head")
    if works:
        assert await check_schema(empty) == SchemaRevision("commandbus_0006", REVISION, is_newer=True)
    else:
        with pytest.raises(SchemaTooNewError, match="upgrade the library") as caught:
            await check_schema(empty)
        assert (caught.value.found, caught.value.wanted) == ("commandbus_0006", REVISION)


async def test_the_version_table_of_a_host(empty: AsyncEngine, empty_database_url: str) -> None:
    await migrate(empty)
    execute(
        empty_database_url,
        "CREATE TABLE alembic_version (version_num text); "
        "INSERT INTO alembic_version VALUES ('aa11'), ('commandbus_0004'), ('zz22')",
    )
    for table in ("alembic_version", "public.alembic_version"):
        with pytest.raises(SchemaTooOldError, match="commandbus_0004"):
            await check_schema(empty, version_table=table)
    execute(empty_database_url, "UPDATE alembic_version SET version_num = 'commandbus_0005' WHERE version_num ~ 'comm'")
    assert (await check_schema(empty, version_table="alembic_version")).found == REVISION


async def test_the_wrong_kind(empty: AsyncEngine) -> None:
    wrong: Any = empty.sync_engine
    with pytest.raises(TypeError, match="not Engine"):
        await check_schema(wrong)
