"""The optional triggers: what they refuse, that the library does all of its work beside them, and their removal."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata
from commandbus_process.guards import guard_statements, main
from commandbus_process.migrations import alembic_config
from tests.support import ROOT
from tests.support.databases import Server, as_role, async_url, execute, fresh_database
from tests.support.ended import retain
from tests.support.everything import do_everything
from tests.support.schema import COMMAND, FIRST, SECOND, STEP, adopted, attempt, described, revision_of, rows

INSTALL, REMOVE = "; ".join(guard_statements()), "; ".join(guard_statements(remove=True))
OPEN, REPLIED = UUID(int=8), COMMAND
ENDED = UUID(int=3)
PAYLOAD = "hunter2"

PROCESS, AUDIT = "UPDATE commandbus.process SET", "UPDATE commandbus.process_audit SET"
OF_REPLIED = f"WHERE command_id = '{REPLIED}'"
# By the trigger that refuses them. The application's role has a right to each.
REFUSED = [
    ("keep_reply", f"{AUDIT} reply_outcome = NULL, received_at = NULL, reply_data = NULL {OF_REPLIED}"),
    ("keep_reply", f"{AUDIT} reply_outcome = 'FAILED' {OF_REPLIED}"),
    ("keep_reply", f"{AUDIT} received_at = received_at - interval '1 day' {OF_REPLIED}"),
    ("keep_reply", f"{AUDIT} received_at = now() {OF_REPLIED}"),
    ("keep_reply", f"{AUDIT} reply_data = NULL {OF_REPLIED}"),
    ("keep_reply", f"{AUDIT} reply_data = reply_data || '{{\"amount\": 0}}' {OF_REPLIED}"),
    ("keep_reply", f"{AUDIT} reply_outcome = 'CANCELED', received_at = now()"),  # one of both rows is replied
    ("keep_version", f"{PROCESS} version = version - 1"),
    ("keep_version", f"{PROCESS} version = 1, status = 'COMPLETED', updated_at = now()"),
]
# Those to which only the owner has a right.
REFUSED_TO_THE_OWNER = [
    ("keep_process", f"{PROCESS} created_at = now()"),
    ("keep_process", f"{PROCESS} process_type = 'refund', version = version + 1"),
    ("keep_process", f"{PROCESS} process_id = '{UUID(int=99)}' WHERE process_id = '{SECOND}'"),
    ("keep_process", f"{PROCESS} domain = 'other' WHERE process_id = '{SECOND}'"),
    *(
        ("keep_command", f"{AUDIT} {change} WHERE command_id = '{OPEN}'")
        for change in [
            "step_name = 'pay'",
            f"command_id = '{UUID(int=99)}'",
            "command_type = 'Pay'",
            "command_data = NULL",
            "sent_at = sent_at - interval '1 s'",
            "compensates = NULL",
            f"process_id = '{SECOND}'",
            "id = 99",
            "reply_outcome = 'SUCCESS', received_at = now(), step_name = 'pay'",
        ]
    ),
]
DELETE_PROCESS, DELETE_STEPS = "DELETE FROM commandbus.process", "DELETE FROM commandbus.process_audit"
OF_ENDED = f"WHERE process_id = '{ENDED}'"
# Those to which only the purger and the owner have a right.
REFUSED_TO_THE_PURGER = [
    ("keep_live_process", f"{DELETE_PROCESS} WHERE process_id = '{SECOND}'"),
    ("keep_live_process", f"{DELETE_STEPS} {OF_ENDED}; {DELETE_PROCESS} WHERE process_id IN ('{ENDED}', '{SECOND}')"),
    ("keep_live_steps", f"{DELETE_STEPS} {OF_REPLIED}"),
    ("keep_live_steps", DELETE_STEPS),
    ("keep_command", f"{AUDIT} command_data = NULL WHERE command_id = '{OPEN}'"),
    ("keep_command", f"{AUDIT} command_data = '{{}}' {OF_ENDED}"),
    ("keep_reply", f"{AUDIT} reply_data = NULL {OF_REPLIED}"),
    ("keep_reply", f"{AUDIT} reply_data = '{{}}' {OF_ENDED}"),
    ("keep_process", f"{PROCESS} business_key = NULL WHERE process_id = '{SECOND}'"),
    ("keep_process", f"{PROCESS} business_key = 'order 8' {OF_ENDED}"),
    ("keep_version", f"{PROCESS} version = version - 1 {OF_ENDED}"),
]
ALLOWED_TO_THE_PURGER = [
    f"{DELETE_STEPS} {OF_ENDED}; {DELETE_PROCESS} {OF_ENDED}",
    f"{DELETE_STEPS} {OF_ENDED}",
    f"WITH steps AS ({DELETE_STEPS} {OF_ENDED}) {DELETE_PROCESS} {OF_ENDED}",
    f"{AUDIT} command_data = NULL, reply_data = NULL {OF_ENDED}",
    f"{PROCESS} business_key = NULL, state = '{{}}', error_message = NULL, version = version + 1 {OF_ENDED}",
    f"{DELETE_PROCESS} WHERE false",
]
ALLOWED = [
    f"{AUDIT} reply_outcome = 'SUCCESS', received_at = now(), reply_data = '{{}}' WHERE reply_outcome IS NULL",
    f"{AUDIT} reply_outcome = reply_outcome, received_at = received_at, reply_data = reply_data",
    f"{PROCESS} status = 'COMPLETED', version = version + 1",
    f"{PROCESS} status = 'COMPLETED', updated_at = now()",  # adopted software, which knows no version
    f"{PROCESS} status = 'COMPLETED', version = version + 7, completed_at = now()",
    f"{PROCESS} status = status, version = version",
]
TRIGGER = "ALTER TABLE commandbus.process_audit {} TRIGGER keep_reply"
ALLOWED_TO_THE_OWNER = [
    # An object-relational mapper may write all columns.
    f"{PROCESS} domain = domain, process_type = process_type, created_at = created_at, status = 'FAILED'",
    f"{AUDIT} step_name = step_name, reply_outcome = 'FAILED', received_at = now() WHERE id = 2",
    f"{TRIGGER.format('DISABLE')}; {AUDIT} reply_outcome = 'FAILED' {OF_REPLIED}; {TRIGGER.format('ENABLE')}",
]


@pytest.fixture(scope="module")
def shared_url(newest_server: Server) -> Iterator[str]:
    """A guarded database with two processes, a replied step and an open one, of which every test leaves no change."""
    with fresh_database(newest_server.url, newest_server.template) as url:
        execute(
            url,
            f"""
            INSERT INTO commandbus.process
                (domain, process_id, process_type, version, state, status, business_key) VALUES
                ('orders', '{FIRST}', 'order', 3, '{{"password": "{PAYLOAD}"}}', 'PENDING', NULL),
                ('orders', '{SECOND}', 'order', 2, '{{}}', 'WAITING', '{PAYLOAD}'),
                ('orders', '{ENDED}', 'order', 4, '{{}}', 'FAILED', '{PAYLOAD}');
            INSERT INTO {STEP}, command_data, compensates, reply_outcome, reply_data, received_at) VALUES
                ('orders', '{FIRST}', 'reserve', '{REPLIED}', 'Reserve', now() - interval '1 h', NULL, NULL,
                    'SUCCESS', '{{"amount": 3, "password": "{PAYLOAD}"}}', now() - interval '1 h'),
                ('orders', '{FIRST}', 'charge', '{OPEN}', 'Charge', now() - interval '1 h', '{{}}', '{REPLIED}',
                    NULL, NULL, NULL),
                ('orders', '{ENDED}', 'reserve', '{UUID(int=9)}', 'Reserve', now() - interval '1 h', '{{"a": 1}}', NULL,
                    'SUCCESS', '{{"amount": 3}}', now() - interval '1 h');
            """,
        )
        execute(as_role(url, newest_server.migrator), INSTALL)
        yield url


def refused(connection: psycopg.Connection[Any], statement: str) -> psycopg.errors.Diagnostic:
    with pytest.raises(psycopg.errors.RestrictViolation) as caught:
        attempt(connection, statement)
    assert PAYLOAD not in str(caught.value)
    return caught.value.diag


@pytest.mark.parametrize(("trigger", "statement"), REFUSED)
def test_what_the_application_may_not_do(
    application: psycopg.Connection[Any],
    owner: psycopg.Connection[Any],
    newest_server: Server,
    trigger: str,
    statement: str,
) -> None:
    for connection in (application, owner):
        told = refused(connection, statement)
        assert told.constraint_name == trigger
        assert str(FIRST if trigger == "keep_version" else REPLIED) in str(told.message_primary)
    attempt(owner, f"{REMOVE}; SET LOCAL ROLE {newest_server.application}; {statement}")


@pytest.mark.parametrize(("trigger", "statement"), REFUSED_TO_THE_OWNER)
def test_what_the_owner_may_not_do(owner: psycopg.Connection[Any], trigger: str, statement: str) -> None:
    assert refused(owner, statement).constraint_name == trigger
    attempt(owner, f"{REMOVE}; {statement}")


@pytest.fixture(scope="module")
def purger(shared_url: str, newest_server: Server) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(as_role(shared_url, newest_server.purger)) as connection:
        yield connection


@pytest.mark.parametrize(("trigger", "statement"), REFUSED_TO_THE_PURGER)
def test_what_the_purger_may_not_do(
    purger: psycopg.Connection[Any],
    owner: psycopg.Connection[Any],
    newest_server: Server,
    trigger: str,
    statement: str,
) -> None:
    for connection in (purger, owner):
        assert refused(connection, statement).constraint_name == trigger
    # It is the trigger alone. The steps of a process have to be gone, too, before it can be deleted.
    gone = f"{DELETE_STEPS}; " if "DELETE" in statement else ""
    attempt(owner, f"{REMOVE}; {gone}SET LOCAL ROLE {newest_server.purger}; {statement}")


@pytest.mark.parametrize("statement", ALLOWED_TO_THE_PURGER)
def test_what_the_purger_may_do(purger: psycopg.Connection[Any], statement: str) -> None:
    attempt(purger, statement)


@pytest.mark.parametrize("statement", ALLOWED)
def test_what_the_application_may_do(application: psycopg.Connection[Any], statement: str) -> None:
    attempt(application, statement)


@pytest.mark.parametrize("statement", ALLOWED_TO_THE_OWNER)
def test_what_the_owner_may_do(owner: psycopg.Connection[Any], statement: str) -> None:
    attempt(owner, statement)


@pytest.fixture
def guarded_url(database_url: str, server: Server) -> str:
    execute(as_role(database_url, server.migrator), INSTALL)
    return database_url


@pytest.mark.own_database
async def test_the_library_does_all_of_its_work(guarded_url: str, engine: AsyncEngine) -> None:
    """Every method on every path that has a statement of its own, delivered twice, in bulk, and with locks."""
    await do_everything(engine)
    triggers = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"
    with psycopg.connect(guarded_url) as connection:
        assert connection.execute(triggers.encode()).fetchone() == (6,)


@pytest.mark.own_database
async def test_the_retention_does_all_of_its_work(guarded_url: str, administrator: AsyncEngine, server: Server) -> None:
    purger = create_async_engine(async_url(as_role(guarded_url, server.purger)))
    await retain(purger, administrator)
    await purger.dispose()


@pytest.mark.own_database
async def test_a_refusal_is_an_error_of_sqlalchemys(
    guarded_url: str, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    await repository.save(process)
    await repository.update(process)
    with pytest.raises(IntegrityError) as caught:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE commandbus.process SET version = 1"))
    assert isinstance(caught.value.orig, psycopg.errors.RestrictViolation)
    assert (caught.value.orig.sqlstate, caught.value.orig.diag.constraint_name) == ("23001", "keep_version")
    assert guarded_url


def made(url: str) -> list[tuple[object, ...]]:
    """The triggers and functions of the schema, by their definitions."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal UNION ALL "
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = to_regnamespace('commandbus') ORDER BY 1"
        ).fetchall()


def test_installed_twice_and_removed_twice(database_url: str, server: Server) -> None:
    migrator, before = as_role(database_url, server.migrator), described(database_url)
    for _ in range(2):
        execute(migrator, INSTALL)
        assert len(made(database_url)) == 8
        command.check(alembic_config(migrator))
    assert described(database_url) == before
    for _ in range(2):
        execute(migrator, REMOVE)
        assert made(database_url) == []


def test_the_downgrade_removes_them(empty_database_url: str) -> None:
    """They know the column that goes, and every update would fail without it."""
    url = empty_database_url
    adopted(url, "commandbus_0003")
    before, kept = described(url), rows(url)
    command.upgrade(alembic_config(url), "head")
    execute(url, INSTALL)
    command.downgrade(alembic_config(url), "commandbus_0003")
    assert (described(url), rows(url), revision_of(url), made(url)) == (before, kept, "commandbus_0003", [])
    execute(url, f"{PROCESS} version = version + 1; {AUDIT} step_name = 'other'")
    command.upgrade(alembic_config(url), "head")
    execute(url, INSTALL)
    command.downgrade(alembic_config(url), "base")
    assert made(url) == []


def printed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "commandbus_process.guards", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_prints_what_a_pipe_can_run(database_url: str, server: Server) -> None:
    migrator = as_role(database_url, server.migrator)
    install, remove = printed(), printed("--remove")
    assert [(each.returncode, each.stderr) for each in (install, remove)] == [(0, "")] * 2
    assert printed().stdout == install.stdout
    with psycopg.connect(migrator, autocommit=True) as connection:
        connection.execute(install.stdout.encode())
        assert len(made(database_url)) == 8
        connection.execute(remove.stdout.encode())
        assert made(database_url) == []


@pytest.mark.parametrize("arguments", [[""], ["-h"], ["--help"], ["ROLE"], ["--schema"], ["--rem"]], ids=str)
def test_wrong_usage_prints_nothing_that_a_pipe_would_run(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[0] == "usage: python -m commandbus_process.guards [--remove] [--schema SCHEMA]"
    assert told.out == ""
