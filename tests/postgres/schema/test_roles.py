"""The reader and the purger: what they may do, what they may not, and that they need each of their rights."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import PostgresProcessQueries, ProcessFilter, SchemaError
from commandbus_process.grants import Purpose, grant_statements, main
from commandbus_process.migrations import check_schema
from tests.postgres.schema.test_rights import granted
from tests.support.databases import Server, as_role, async_url, execute
from tests.support.ended import ended, retain, store
from tests.support.items import DOMAIN
from tests.support.schema import VERSIONS, attempt

READER = {
    ("commandbus", "", "USAGE"),
    ("commandbus_process_version", "", "SELECT"),
    ("process", "", "SELECT"),
    ("process_audit", "", "SELECT"),
}
PURGER = {
    ("commandbus", "", "USAGE"),
    ("commandbus_process_version", "", "SELECT"),
    *((table, "", right) for table in ("process", "process_audit") for right in ("SELECT", "DELETE")),
    *(("process", column, "UPDATE") for column in ("state", "error_message", "business_key", "version")),
    *(("process_audit", column, "UPDATE") for column in ("command_data", "reply_data")),
}
RIGHTS: dict[Purpose, set[tuple[str, str, str]]] = {"reader": READER, "purger": PURGER}
PROCESS, AUDIT = "commandbus.process", "commandbus.process_audit"
REFUSED: dict[Purpose, list[str]] = {
    "reader": [
        f"DELETE FROM {PROCESS} WHERE false",
        f"UPDATE {PROCESS} SET state = state",
        f"UPDATE {AUDIT} SET reply_data = NULL",
        f"SELECT FROM {PROCESS} FOR KEY SHARE",
    ],
    "purger": [
        f"UPDATE {PROCESS} SET status = status",
        f"UPDATE {PROCESS} SET updated_at = updated_at",
        f"UPDATE {AUDIT} SET reply_outcome = reply_outcome",
        f"TRUNCATE {AUDIT}",
    ],
}
FOR_BOTH = [
    f"INSERT INTO {PROCESS} (domain, process_id, process_type) VALUES ('a', gen_random_uuid(), 'b')",
    f"INSERT INTO {AUDIT} (domain) VALUES ('a')",
    f"DELETE FROM {VERSIONS}",
    f"DROP TABLE {AUDIT}",
    f"ALTER TABLE {PROCESS} DISABLE TRIGGER ALL",
    "SET session_replication_role = replica",
]


def role_of(server: Server, purpose: Purpose) -> str:
    return {"reader": server.reader, "purger": server.purger}[purpose]


@pytest.mark.parametrize("purpose", RIGHTS)
def test_the_rights_are_these_and_no_others(database_url: str, server: Server, purpose: Purpose) -> None:
    assert granted(database_url, role_of(server, purpose)) == RIGHTS[purpose]


@pytest.mark.parametrize(
    ("purpose", "statement"),
    [(purpose, statement) for purpose, own in REFUSED.items() for statement in [*own, *FOR_BOTH]],
)
def test_what_they_may_not_do(database_url: str, server: Server, purpose: Purpose, statement: str) -> None:
    with (
        psycopg.connect(as_role(database_url, role_of(server, purpose))) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        attempt(connection, statement)


async def query(reader: AsyncEngine, administrator: AsyncEngine) -> None:
    """Every query, and the revision."""
    queries = PostgresProcessQueries(reader)
    wanted = ProcessFilter(domain=DOMAIN)
    await store(administrator, [ended()])
    assert (await queries.page(wanted, steps=True)).items
    assert (await queries.count(wanted)).value
    for consistent in (False, True):
        async with queries.stream(wanted, consistent=consistent) as processes:
            assert [process async for process in processes]
    await queries.backlog(DOMAIN)
    await queries.step_statistics(wanted, allow_scan=True)
    await queries.open_steps(wanted)
    async with reader.connect() as conn:
        await conn.execute(text(f"SELECT version_num FROM {VERSIONS}"))


async def check_and_retain(purger: AsyncEngine, administrator: AsyncEngine) -> None:
    await check_schema(purger)
    await retain(purger, administrator)


Work = Callable[[AsyncEngine, AsyncEngine], Awaitable[None]]
WORK: dict[Purpose, Work] = {"reader": query, "purger": check_and_retain}


@pytest.fixture(params=RIGHTS)
def purpose(request: pytest.FixtureRequest) -> Purpose:
    given: Purpose = request.param
    return given


@pytest.fixture
async def of_role(database_url: str, server: Server, purpose: Purpose) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(as_role(database_url, role_of(server, purpose))))
    yield engine
    await engine.dispose()


async def lacks_a_right(purpose: Purpose, engine: AsyncEngine, administrator: AsyncEngine) -> bool:
    try:
        await WORK[purpose](engine, administrator)
    except SchemaError:
        return True  # check_schema looks at the right before it reads
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        return True
    finally:
        async with administrator.begin() as conn:
            await conn.exec_driver_sql(f"DELETE FROM {AUDIT}")
            await conn.exec_driver_sql(f"DELETE FROM {PROCESS}")
    return False


@pytest.mark.own_database
async def test_without_any_single_right_something_fails(
    of_role: AsyncEngine, administrator: AsyncEngine, database_url: str, server: Server, purpose: Purpose
) -> None:
    assert not await lacks_a_right(purpose, of_role, administrator)
    needless: list[tuple[str, str, str]] = []
    role = role_of(server, purpose)
    for right in sorted(granted(database_url, role)):
        name, column, privilege = right
        what = f"{privilege} ({column})" if column else privilege
        target = f"{what} ON {'SCHEMA ' if name == 'commandbus' else 'TABLE commandbus.'}{name}"
        execute(database_url, f"REVOKE {target} FROM {role}")
        if not await lacks_a_right(purpose, of_role, administrator):
            needless.append(right)
        execute(database_url, f"GRANT {target} TO {role}")
    assert needless == []
    assert granted(database_url, role) == RIGHTS[purpose]


@pytest.fixture
def other_role(database_url: str, purpose: Purpose) -> Iterator[str]:
    name = f'the "other" {purpose}'
    role = sql.Identifier(name).as_string()
    execute(database_url, f"CREATE ROLE {role}")
    yield name
    execute(database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_command_prints_them(
    capsys: pytest.CaptureFixture[str], database_url: str, server: Server, other_role: str, purpose: Purpose
) -> None:
    assert main([other_role, "--for", purpose]) == 0
    execute(as_role(database_url, server.migrator), capsys.readouterr().out)
    assert granted(database_url, other_role) == RIGHTS[purpose]


def test_an_application_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []
    for arguments in (["shop"], ["shop", "--for", "application"], ["--for", "application", "shop"]):
        assert main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert printed == ["".join(f"{each};\n" for each in grant_statements("shop"))] * 3


def test_an_unknown_purpose_is_an_error() -> None:
    purpose: Any = "owner"
    with pytest.raises(ValueError, match="application, reader, purger"):
        grant_statements("shop", purpose)
