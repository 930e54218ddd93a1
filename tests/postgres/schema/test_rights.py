"""Least privilege and the integrity of the audit trail: what the application may do, and what nobody can."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StoredDataError,
)
from commandbus_process.grants import main
from commandbus_process.migrations import alembic_config
from commandbus_process.tables import metadata
from tests.support import ROOT
from tests.support.databases import Server, as_role, async_url, execute, execute_script, fresh_database, write_unchecked
from tests.support.everything import do_everything
from tests.support.items import DOMAIN, new_process
from tests.support.schema import (
    COMMAND,
    FIRST,
    SECOND,
    STEP,
    VERSIONS,
    adopted,
    alembic,
    attempt,
    described,
    revision_of,
    rows,
    succeeds,
)

# What the issue calls "exactly the rights that the repository needs", column by column.
COMMAND_COLUMNS = ["step_name", "command_id", "command_type", "command_data", "sent_at", "compensates"]
FIXED = {
    "process": ["domain", "process_id", "process_type", "created_at", "business_key"],
    "process_audit": ["domain", "process_id", *COMMAND_COLUMNS],
}
CHANGING = {
    "process": [
        "status",
        "current_step",
        "state",
        "error_code",
        "error_message",
        "updated_at",
        "completed_at",
        "deadline",
        "state_version",
    ],
    "process_audit": ["reply_outcome", "reply_data", "received_at"],
}
GENERATED = {"process": "version", "process_audit": "id"}
RIGHTS = {
    ("commandbus", "", "USAGE"),
    ("process_audit_id_seq", "", "USAGE"),
    ("commandbus_process_version", "", "SELECT"),
    ("process", "version", "UPDATE"),
    *((table, "", "SELECT") for table in FIXED),
    *((table, column, "INSERT") for table in FIXED for column in FIXED[table] + CHANGING[table]),
    *((table, column, "UPDATE") for table in CHANGING for column in CHANGING[table]),
}

GRANTED = """
    SELECT nspname, '', privilege_type FROM pg_namespace, aclexplode(nspacl) WHERE grantee = to_regrole(%(role)s)
    UNION ALL SELECT relname, '', privilege_type FROM pg_class, aclexplode(relacl) WHERE grantee = to_regrole(%(role)s)
    UNION ALL SELECT relname, attname, privilege_type
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid, aclexplode(attacl)
        WHERE grantee = to_regrole(%(role)s)
    UNION ALL SELECT proname, '', privilege_type FROM pg_proc, aclexplode(proacl) WHERE grantee = to_regrole(%(role)s)
    UNION ALL SELECT datname, '', privilege_type FROM pg_database, aclexplode(datacl)
        WHERE grantee = to_regrole(%(role)s) AND datname = current_database()
    UNION ALL SELECT rolname, '', 'MEMBER' FROM pg_auth_members JOIN pg_roles ON pg_roles.oid = roleid
        WHERE member = to_regrole(%(role)s)
"""


@pytest.fixture(scope="module")
def shared_url(newest_server: Server) -> Iterator[str]:
    """A database with one process, its replied step and an open one, of which every test leaves no change."""
    with fresh_database(newest_server.url, newest_server.template) as url:
        execute(
            url,
            f"""
            INSERT INTO commandbus.process (domain, process_id, process_type) VALUES ('orders', '{FIRST}', 'order');
            INSERT INTO commandbus.process_audit
                (domain, process_id, step_name, command_id, command_type, sent_at, reply_outcome, received_at)
            VALUES ('orders', '{FIRST}', 'reserve', '{COMMAND}', 'Reserve', now(), 'SUCCESS', now()),
                   ('orders', '{FIRST}', 'charge', '{UUID(int=8)}', 'Charge', now(), NULL, NULL);
            """,
        )
        yield url


def granted(url: str, role: str) -> set[tuple[str, str, str]]:
    with psycopg.connect(url) as connection:
        quoted = sql.Identifier(role).as_string(connection)
        return set(connection.execute(GRANTED.encode(), {"role": quoted}).fetchall())


REFUSED = [
    "DELETE FROM commandbus.process_audit",
    "DELETE FROM commandbus.process WHERE false",
    "TRUNCATE commandbus.process_audit",
    "TRUNCATE commandbus.process CASCADE",
    "MERGE INTO commandbus.process_audit a USING commandbus.process p ON a.domain = p.domain WHEN MATCHED THEN DELETE",
    # What was sent, and what a process is.
    *(f"UPDATE commandbus.{table} SET {column} = {column}" for table in FIXED for column in FIXED[table]),
    "UPDATE commandbus.process_audit SET id = id",
    "UPDATE commandbus.process_audit SET reply_outcome = 'FAILED', received_at = now(), sent_at = now()",
    f"INSERT INTO commandbus.process (domain, process_id, process_type, version) VALUES ('a', '{SECOND}', 'b', 7)",
    f"INSERT INTO {STEP}, id) VALUES ('orders', '{FIRST}', 'forged', '{SECOND}', 'Reserve', now(), 0)",
    "SELECT setval('commandbus.process_audit_id_seq', 1)",
    "SELECT last_value FROM commandbus.process_audit_id_seq",
    "ALTER SEQUENCE commandbus.process_audit_id_seq RESTART",
    # Alembic's table.
    f"INSERT INTO {VERSIONS} VALUES ('0001')",
    f"UPDATE {VERSIONS} SET version_num = '0001'",
    f"DELETE FROM {VERSIONS}",
    f"TRUNCATE {VERSIONS}",
    f"DROP TABLE {VERSIONS}",
    # Definitions.
    "CREATE TABLE commandbus.intruder (id int)",
    "CREATE VIEW commandbus.intruder AS SELECT 1",
    "CREATE FUNCTION commandbus.intruder() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE INDEX ON commandbus.process (status)",
    "CREATE TRIGGER t BEFORE UPDATE ON commandbus.process EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE intruder AS ON UPDATE TO commandbus.process DO ALSO NOTHING",
    "CREATE POLICY intruder ON commandbus.process",
    "CREATE SCHEMA intruder",
    "ALTER TABLE commandbus.process ADD COLUMN intruder int",
    "ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_reply_check",
    "ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_command_key",
    "ALTER TABLE commandbus.process_audit DISABLE TRIGGER ALL",
    "ALTER TABLE commandbus.process OWNER TO CURRENT_USER",
    "ALTER SCHEMA commandbus RENAME TO intruder",
    "DROP INDEX commandbus.idx_process_status_created",
    "DROP TABLE commandbus.process_audit",
    "DROP SCHEMA commandbus CASCADE",
    "COMMENT ON TABLE commandbus.process IS 'intruder'",
    # What would stop everybody, or switch the foreign key off.
    "LOCK TABLE commandbus.process IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE commandbus.process_audit IN SHARE MODE",
    "SET session_replication_role = replica",
]


@pytest.mark.parametrize("statement", REFUSED)
def test_what_the_application_may_not_do(
    application: psycopg.Connection[Any], owner: psycopg.Connection[Any], statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        attempt(application, statement)
    attempt(owner, statement)  # it is the right that was missing, and nothing else is wrong with it


def test_the_application_passes_no_right_on(
    application: psycopg.Connection[Any], owner: psycopg.Connection[Any]
) -> None:
    """Nor does it fail: PostgreSQL warns, and does nothing."""
    acls = "SELECT relname, relacl FROM pg_class WHERE relnamespace = to_regnamespace('commandbus') ORDER BY 1"
    before = owner.execute(acls).fetchall()
    for target in ("commandbus.process", "commandbus.process_audit", VERSIONS):
        application.execute(f"GRANT SELECT ON {target} TO PUBLIC".encode())
    assert application.execute(acls).fetchall() == before
    application.rollback()
    owner.rollback()


def test_the_application_reads_the_revision(application: psycopg.Connection[Any]) -> None:
    assert application.execute(f"SELECT version_num FROM {VERSIONS}".encode()).fetchall() == [("commandbus_0005",)]
    application.rollback()


def test_the_rights_are_these_and_no_others(shared_url: str, newest_server: Server) -> None:
    columns = {table.name: {column.name for column in table.columns} for table in metadata.tables.values()}
    every = {table: {*FIXED[table], *CHANGING[table], GENERATED[table]} for table in FIXED}
    assert columns == every
    assert granted(shared_url, newest_server.application) == RIGHTS
    with psycopg.connect(shared_url) as connection:
        for_everybody = connection.execute(
            "SELECT relname FROM pg_class, aclexplode(relacl) WHERE grantee = 0 "
            "AND relnamespace = to_regnamespace('commandbus')"
        )
        assert for_everybody.fetchall() == []


@pytest.fixture
async def engine(database_url: str, server: Server) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(as_role(database_url, server.application)))
    yield engine
    await engine.dispose()


async def lacks_a_right(engine: AsyncEngine) -> bool:
    try:
        await do_everything(engine)
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        return True
    return False


@pytest.mark.own_database
async def test_without_any_single_right_something_fails(engine: AsyncEngine, database_url: str, server: Server) -> None:
    assert not await lacks_a_right(engine)
    needless: list[tuple[str, str, str]] = []
    kinds = {"commandbus": "SCHEMA ", "process_audit_id_seq": "SEQUENCE commandbus."}
    for right in sorted(granted(database_url, server.application)):
        name, column, privilege = right
        what = f"{privilege} ({column})" if column else privilege
        target = f"{what} ON {kinds.get(name, 'TABLE commandbus.')}{name}"
        execute(database_url, f"REVOKE {target} FROM {server.application}")
        if not await lacks_a_right(engine):
            needless.append(right)
        execute(database_url, f"GRANT {target} TO {server.application}")
    assert needless == []
    assert granted(database_url, server.application) == RIGHTS


@pytest.mark.own_database
@pytest.mark.parametrize("table", FIXED)
async def test_every_column_is_read(engine: AsyncEngine, database_url: str, server: Server, table: str) -> None:
    """So that the right to SELECT from the whole table is not more than is needed either."""
    columns = [*FIXED[table], *CHANGING[table], GENERATED[table]]
    execute(database_url, f"REVOKE SELECT ON commandbus.{table} FROM {server.application}")
    needless: list[str] = []
    for column in columns:
        others = ", ".join(other for other in columns if other != column)
        execute(database_url, f"GRANT SELECT ({others}) ON commandbus.{table} TO {server.application}")
        if not await lacks_a_right(engine):
            needless.append(column)
        execute(database_url, f"REVOKE SELECT ({others}) ON commandbus.{table} FROM {server.application}")
    assert needless == []


def print_grants(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "commandbus_process.grants", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@contextmanager
def new_role(url: str, name: str) -> Generator[None]:
    role = sql.Identifier(name).as_string()
    execute(url, f"CREATE ROLE {role}")
    try:
        yield
    finally:
        execute(url, f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "With Spaces",
        'double "quotes" ""',
        "single 'quotes'",
        "UPPER",
        "ünïcødé",
        "a; DROP TABLE x; --",
        "%s {}",
    ],
)
def test_the_statements_are_right_for_any_name(
    capsys: pytest.CaptureFixture[str], shared_url: str, newest_server: Server, name: str
) -> None:
    role = f"{name} {os.getpid()}"
    with new_role(shared_url, role):
        assert main([role]) == 0
        printed = capsys.readouterr()
        for _ in range(2):  # they can be run again
            execute(as_role(shared_url, newest_server.migrator), printed.out)
        assert granted(shared_url, role) == RIGHTS


def test_the_command_prints_what_a_pipe_can_run(shared_url: str, newest_server: Server) -> None:
    role = f'My "first" application\'s role {os.getpid()}'
    with new_role(shared_url, role):
        printed = print_grants(role)
        assert (printed.returncode, printed.stderr) == (0, "")
        execute(as_role(shared_url, newest_server.migrator), printed.stdout)
        assert granted(shared_url, role) == RIGHTS


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["a", "b"],
        ["-h"],
        ["--help"],
        ["--role=a"],
        ["a", "--for", "owner"],
        ["a", "--for"],
        ["--for", "reader"],
    ],
    ids=str,
)
def test_wrong_usage_prints_nothing_that_a_pipe_would_run(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert (
        printed.err.splitlines()[0]
        == "usage: python -m commandbus_process.grants ROLE [--for application|reader|purger] [--schema SCHEMA]"
    )
    assert printed.out == ""


def test_wrong_usage_is_the_exit_code_too() -> None:
    printed = print_grants("a", "b")
    assert (printed.returncode, printed.stdout) == (2, "")
    assert printed.stderr.startswith("usage: ")
    assert "Traceback" not in printed.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE commandbus.process_audit SET received_at = NULL WHERE reply_outcome IS NOT NULL",
        "UPDATE commandbus.process_audit SET reply_outcome = NULL WHERE reply_outcome IS NOT NULL",
        "UPDATE commandbus.process_audit SET reply_outcome = 'FAILED' WHERE reply_outcome IS NULL",
        "UPDATE commandbus.process_audit SET received_at = now() WHERE reply_outcome IS NULL",
        f"INSERT INTO {STEP}, reply_outcome) VALUES ('orders', '{FIRST}', 's', '{SECOND}', 't', now(), 'SUCCESS')",
        f"INSERT INTO {STEP}, received_at) VALUES ('orders', '{FIRST}', 's', '{SECOND}', 't', now(), now())",
    ],
)
def test_not_even_the_owner_tears_a_reply(
    application: psycopg.Connection[Any], owner: psycopg.Connection[Any], statement: str
) -> None:
    for connection in (application, owner):
        with pytest.raises(psycopg.errors.CheckViolation) as caught:
            attempt(connection, statement)
        assert caught.value.diag.constraint_name == "process_audit_reply_check"


def test_outcome_and_time_together_or_neither(owner: psycopg.Connection[Any]) -> None:
    attempt(owner, "UPDATE commandbus.process_audit SET reply_outcome = 'FAILED', received_at = now()")
    attempt(owner, "UPDATE commandbus.process_audit SET reply_outcome = NULL, received_at = NULL")


TEAR = (
    "UPDATE commandbus.process_audit SET reply_outcome = 'FAILED' WHERE id = 2; "
    "UPDATE commandbus.process_audit SET received_at = '2026-03-01T12:03Z' WHERE id = 3"
)
REPAIR = (
    "UPDATE commandbus.process_audit SET received_at = '2026-03-01T12:04Z' WHERE id = 2; "
    "UPDATE commandbus.process_audit SET received_at = NULL WHERE id = 3"
)


@pytest.mark.parametrize("before", ["commandbus_0001", "commandbus_0002"])
def test_torn_replies_are_named_and_nothing_changes(empty_database_url: str, before: str) -> None:
    url = empty_database_url
    adopted(url, before)
    execute(url, TEAR)
    schema, kept = described(url), rows(url)
    result = alembic("upgrade", "head", url=url)
    told = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in told
    assert "revision 0003 has changed nothing: 2 repl" in told
    assert f"domain 'orders', process {FIRST}, command {UUID(int=8)}: row with id 2 has an outcome, but no time" in told
    assert f"domain 'orders', process {SECOND}, command {COMMAND}: row with id 3 has a time, but no outcome" in told
    assert "row with id 1" not in told
    assert (rows(url), revision_of(url)) == (kept, "commandbus_0002")
    if before == "commandbus_0002":
        assert described(url) == schema
    execute(url, REPAIR)
    kept = rows(url)
    command.upgrade(alembic_config(url), "head")
    assert (rows(url), revision_of(url)) == (kept, "commandbus_0005")


def test_of_many_torn_replies_the_first_are_named_and_all_are_counted(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0002")
    execute(
        url,
        f"INSERT INTO {STEP}, reply_outcome) "
        f"SELECT 'orders', '{FIRST}', 'torn', gen_random_uuid(), 'Reserve', now(), 'SUCCESS' "
        "FROM generate_series(1, 1000)",
    )
    with pytest.raises(CommandError, match="1000 repl") as caught:
        command.upgrade(alembic_config(url), "head")
    named = re.findall(r"row with id (\d+)", str(caught.value))
    assert named == [str(number) for number in range(4, 24)]  # three were there before


def test_offline_sql_refuses_torn_replies_too(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0002")
    script = succeeds("upgrade", "commandbus_0002:head", "--sql", url=None)
    execute(url, TEAR)
    schema, kept = described(url), rows(url)
    with pytest.raises(psycopg.errors.RaiseException, match=r"row with id 2 has an outcome, but no time"):
        execute_script(url, script)
    assert (described(url), rows(url), revision_of(url)) == (schema, kept, "commandbus_0002")
    execute(url, REPAIR)
    execute_script(url, script)
    assert revision_of(url) == "commandbus_0005"
    with pytest.raises(psycopg.errors.CheckViolation, match="process_audit_reply_check"):
        execute(url, "UPDATE commandbus.process_audit SET received_at = NULL WHERE id = 2")


@pytest.mark.own_database
def test_check_notices_that_the_constraint_is_gone(database_url: str) -> None:
    command.check(alembic_config(database_url))
    execute(database_url, "ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_reply_check")
    result = alembic("check", url=database_url)
    assert result.returncode != 0
    assert "process_audit_reply_check" in result.stdout + result.stderr


async def test_a_status_of_newer_software_blocks_nobody(engine: AsyncEngine, database_url: str) -> None:
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    known, newer = new_process(), new_process()
    for process in (known, newer):
        await repository.save(process)
    write_unchecked(
        database_url, f"UPDATE commandbus.process SET status = 'PAUSED' WHERE process_id = '{newer.process_id}'"
    )
    assert await repository.find_by_status(DOMAIN, list(ProcessStatus)) == [known]
    async with engine.begin() as conn:
        assert await repository.claim(DOMAIN, list(ProcessStatus), conn, limit=9) == [known]
        with pytest.raises(StoredDataError, match="status") as caught:
            await repository.get_by_id(DOMAIN, newer.process_id, conn)
        assert (caught.value.domain, caught.value.process_id) == (DOMAIN, newer.process_id)
        assert await repository.get_by_id(DOMAIN, known.process_id, conn) == known


async def test_an_outcome_of_newer_software_is_never_overwritten(
    engine: AsyncEngine, database_url: str, process: ProcessMetadata
) -> None:
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    key = DOMAIN, process.process_id
    await repository.save(process)
    await repository.log_step(*key, entry)
    write_unchecked(database_url, "UPDATE commandbus.process_audit SET reply_outcome = 'PARTIAL', received_at = now()")
    before = rows(database_url)
    reply = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS})
    other = entry.model_copy(update={"step_name": "other"})
    async with engine.begin() as conn:
        with pytest.raises(StoredDataError, match=rf"{entry.command_id}.*reply_outcome") as caught:
            await repository.get_audit_trail(*key, conn)
        assert (caught.value.domain, caught.value.process_id) == key
        with pytest.raises((StoredDataError, ReplyConflictError), match=str(entry.command_id)):
            await repository.update_step_reply(*key, entry.command_id, reply, conn)
        with pytest.raises((StoredDataError, StepAlreadyLoggedError), match=str(entry.command_id)):
            await repository.log_step(*key, other, conn)
        await repository.log_step(*key, entry, conn)  # a redelivery of the command itself
        assert await repository.get_completed_steps(*key, conn) == []
    assert rows(database_url) == before
