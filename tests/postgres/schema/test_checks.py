"""What the database refuses from every writer. Adopted rows and other software go on as before."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateSchema

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessStatus, ReplyOutcome
from commandbus_process.migrations import alembic_config
from commandbus_process.tables import metadata
from tests.support import ROOT
from tests.support.databases import Server, async_url, execute, fresh_database
from tests.support.schema import (
    COMMAND,
    FIRST,
    SECOND,
    STEP,
    adopted,
    alembic,
    attempt,
    described,
    locked,
    revision_of,
    rows,
    seed,
    upgrades,
    wait_until,
    waiting,
)

REVISION = (ROOT / "alembic/versions/0004_compensations_and_checks.py").read_text()
PROCESS = "commandbus.process (domain, process_id, process_type"
OPEN, REPLIED = UUID(int=8), COMMAND


@pytest.fixture(scope="module")
def shared_url(newest_server: Server) -> Iterator[str]:
    """A database with a process, a replied step and an open one, of which every test leaves no change."""
    with fresh_database(newest_server.url, newest_server.template) as url:
        execute(
            url,
            f"""
            INSERT INTO {PROCESS}) VALUES ('orders', '{FIRST}', 'order');
            INSERT INTO {STEP}, reply_outcome, received_at) VALUES
                ('orders', '{FIRST}', 'reserve', '{REPLIED}', 'Reserve', now(), 'SUCCESS', now()),
                ('orders', '{FIRST}', 'charge', '{OPEN}', 'Charge', now(), NULL, NULL);
            """,
        )
        yield url


def new_step(columns: str, values: str) -> str:
    return f"INSERT INTO {STEP}, {columns}) VALUES ('orders', '{FIRST}', 's', '{SECOND}', 't', now(), {values})"


REPLY_TO_OPEN = "UPDATE commandbus.process_audit SET {} WHERE reply_outcome IS NULL"
MADE_UP = [
    ("process_status_known", "UPDATE commandbus.process SET status = 'PAUSED'"),
    ("process_status_known", "UPDATE commandbus.process SET status = 'pending'"),
    ("process_status_known", "UPDATE commandbus.process SET status = ''"),
    ("process_status_known", f"INSERT INTO {PROCESS}, status) VALUES ('orders', '{SECOND}', 'order', 'DONE')"),
    ("process_version_positive", "UPDATE commandbus.process SET version = 0"),
    ("process_version_positive", "UPDATE commandbus.process SET version = version - 2"),
    ("process_audit_outcome_known", REPLY_TO_OPEN.format("reply_outcome = 'PARTIAL', received_at = now()")),
    ("process_audit_outcome_known", REPLY_TO_OPEN.format("reply_outcome = 'success', received_at = now()")),
    ("process_audit_outcome_known", new_step("reply_outcome, received_at", "'', now()")),
    ("process_audit_data_with_outcome", REPLY_TO_OPEN.format("reply_data = '{}'")),
    ("process_audit_data_with_outcome", new_step("reply_data", "'[null]'")),
    ("process_audit_compensates_another", new_step("compensates", f"'{SECOND}'")),
]
ALLOWED = [
    *(f"UPDATE commandbus.process SET status = '{status}', version = version + 1" for status in ProcessStatus),
    *(REPLY_TO_OPEN.format(f"reply_outcome = '{outcome}', received_at = now()") for outcome in ReplyOutcome),
    REPLY_TO_OPEN.format("reply_outcome = 'FAILED', received_at = now(), reply_data = '{\"a\": 1}'"),
    # Software that keeps no NULL apart from JSON's null writes the one for the other.
    REPLY_TO_OPEN.format("reply_data = 'null'"),
    new_step("reply_data, compensates", "'null', NULL"),
    new_step("compensates", f"'{REPLIED}'"),
    # What is undone may be written down nowhere here: the trail of an adopted database begins at some time.
    new_step("compensates", f"'{UUID(int=99)}'"),
    f"INSERT INTO {PROCESS}) VALUES ('orders', '{SECOND}', 'order')",
]


@pytest.mark.parametrize(("name", "statement"), MADE_UP)
def test_made_up_rows_are_refused_from_every_writer(
    application: psycopg.Connection[Any], owner: psycopg.Connection[Any], name: str, statement: str
) -> None:
    for connection in (application, owner):
        with pytest.raises(psycopg.errors.CheckViolation) as caught:
            attempt(connection, statement)
        assert caught.value.diag.constraint_name == name


@pytest.mark.parametrize("statement", ALLOWED)
def test_what_is_not_made_up_is_allowed(application: psycopg.Connection[Any], statement: str) -> None:
    attempt(application, statement)


def test_what_a_command_undoes_is_said_once(application: psycopg.Connection[Any]) -> None:
    attempt(application, new_step("compensates", f"'{REPLIED}'"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        attempt(application, f"UPDATE commandbus.process_audit SET compensates = '{REPLIED}'")


def checks(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE contype = 'c' AND connamespace = to_regnamespace('commandbus')"
        )
        return dict(found.fetchall())


def test_the_tables_and_the_migrations_have_the_same_checks(database_url: str, empty_database_url: str) -> None:
    """`alembic check` compares their names only."""
    engine = create_engine(async_url(empty_database_url))
    with engine.begin() as connection:
        connection.execute(CreateSchema("commandbus"))
        metadata.create_all(connection)
    engine.dispose()
    assert checks(empty_database_url) == checks(database_url)
    assert len(checks(database_url)) == 6
    assert not any("NOT VALID" in definition for definition in checks(database_url).values())


BREAKING = f"""
    UPDATE commandbus.process SET status = 'PAUSED' WHERE process_id = '{SECOND}';
    UPDATE commandbus.process_audit SET reply_outcome = 'PARTIAL' WHERE id = 1;
    UPDATE commandbus.process_audit SET reply_data = '{{"early": true}}' WHERE id = 2;
    UPDATE commandbus.process_audit SET reply_data = 'null' WHERE id = 3;
"""
MENDING = f"""
    UPDATE commandbus.process SET status = 'PENDING', version = 1 WHERE process_id = '{SECOND}';
    UPDATE commandbus.process_audit SET reply_outcome = 'FAILED' WHERE id = 1;
    UPDATE commandbus.process_audit SET reply_data = NULL WHERE id = 2;
"""
# The queries that the revision's docstring gives: to find the rows, and to validate.
FINDING = [f"SELECT {each}" for each in re.findall(r"^    SELECT (.+?);$", REVISION, re.MULTILINE | re.DOTALL)][:2]
VALIDATING = re.findall(r"^    (ALTER TABLE \S+ VALIDATE CONSTRAINT \w+);$", REVISION, re.MULTILINE)


def found_by(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def test_rows_that_break_the_checks_are_adopted_found_mended_and_validated(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    execute(url, BREAKING)
    kept = rows(url)
    command.stamp(alembic_config(url), "commandbus_0001")
    command.upgrade(alembic_config(url), "commandbus_0003")
    execute(url, f"UPDATE commandbus.process SET version = 0 WHERE process_id = '{SECOND}'")
    command.upgrade(alembic_config(url), "head")
    assert rows(url) == kept
    command.check(alembic_config(url))
    not_valid = {name for name, definition in checks(url).items() if definition.endswith("NOT VALID")}
    assert not_valid == set(checks(url)) - {"process_audit_reply_check"}
    # What is new is refused, beside what is old.
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(url, f"UPDATE commandbus.process SET status = 'PAUSED' WHERE process_id = '{FIRST}'")

    processes, entries = FINDING
    assert found_by(url, processes) == [("orders", SECOND, "PAUSED", 0)]
    assert sorted(found_by(url, entries), key=str) == [
        ("orders", FIRST, COMMAND, "PARTIAL"),
        ("orders", FIRST, UUID(int=8), None),
    ]
    assert len(VALIDATING) == len(not_valid)
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(url, "; ".join(VALIDATING))
    execute(url, MENDING)
    assert [found_by(url, query) for query in FINDING] == [[], []]
    execute(url, "; ".join(VALIDATING))
    assert not any("NOT VALID" in definition for definition in checks(url).values())


def test_validating_does_not_stop_other_writers(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "head")
    with psycopg.connect(url) as validating:
        for statement in VALIDATING:
            validating.execute(statement.encode())
        # Its locks are held until it commits.
        execute(
            url,
            "SET lock_timeout = '5s'; UPDATE commandbus.process SET status = 'FAILED'; TABLE commandbus.process_audit",
        )


def test_without_rows_the_checks_of_a_table_are_valid_at_once(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    execute(url, "TRUNCATE commandbus.process_audit")
    command.stamp(alembic_config(url), "commandbus_0001")
    command.upgrade(alembic_config(url), "head")
    not_valid = {name for name, definition in checks(url).items() if definition.endswith("NOT VALID")}
    assert not_valid == {"process_status_known", "process_version_positive"}


def test_checks_that_were_made_by_hand_block_nobody(empty_database_url: str) -> None:
    """PostgreSQL names a CHECK by its table and column, if the one who writes it does not."""
    url = empty_database_url
    seed(url)
    execute(
        url,
        "ALTER TABLE commandbus.process ADD CHECK (status <> ''), ADD CHECK (state IS NOT NULL);"
        "ALTER TABLE commandbus.process_audit ADD CHECK (reply_outcome <> ''), ADD CHECK (reply_data <> '0'), "
        "ADD CHECK (reply_data IS NULL OR reply_outcome IS NOT NULL)",
    )
    by_hand = checks(url)
    assert {"process_status_check", "process_audit_reply_outcome_check", "process_audit_check"} <= set(by_hand)
    command.stamp(alembic_config(url), "commandbus_0001")
    command.upgrade(alembic_config(url), "head")
    command.check(alembic_config(url))
    command.downgrade(alembic_config(url), "commandbus_0001")
    assert checks(url) == by_hand


def test_the_process_is_locked_before_its_trail(empty_database_url: str) -> None:
    """As every writer does, so that an upgrade and a writer never wait for each other."""
    url = empty_database_url
    adopted(url, "commandbus_0003")
    with upgrades(url, 1) as [upgrading], locked(url, "commandbus.process", "ACCESS SHARE") as connection:
        wait_until(lambda: len(waiting(connection)) == 1, [upgrading])
        connection.execute("LOCK TABLE commandbus.process_audit IN ACCESS EXCLUSIVE MODE NOWAIT")


# What software does that knows no revision 0004: an older version of this library, and plain SQL.
OLDER_SOFTWARE = f"""
    INSERT INTO {STEP}, command_data, reply_outcome, reply_data, received_at)
        SELECT domain, process_id, 'pack', '{{command}}', 'Pack', now(), 'null', NULL, NULL, NULL
        FROM commandbus.process WHERE process_id = '{FIRST}' FOR KEY SHARE ON CONFLICT DO NOTHING;
    UPDATE commandbus.process_audit SET reply_outcome = 'SUCCESS', reply_data = NULL, received_at = now()
        WHERE command_id = '{{command}}' AND reply_outcome IS NULL;
    UPDATE commandbus.process SET status = 'COMPENSATING', updated_at = now() WHERE process_id = '{FIRST}';
    UPDATE commandbus.process SET current_step = 'pack', version = version + 1 WHERE process_id = '{FIRST}';
"""


async def test_what_was_saved_before_works_after_the_upgrade_and_after_the_downgrade(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0003")
    before = described(url)
    execute(url, OLDER_SOFTWARE.format(command=UUID(int=20)))
    command.upgrade(alembic_config(url), "head")
    execute(url, OLDER_SOFTWARE.format(command=UUID(int=21)))  # still running beside the new version

    engine = create_async_engine(async_url(url))
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    found = await repository.get_by_id("orders", FIRST)
    assert found is not None
    assert (found.status, found.current_step, found.version) == (ProcessStatus.COMPENSATING, "pack", 3)
    await repository.update(found)
    assert [entry.compensates for entry in await repository.get_audit_trail("orders", FIRST)] == [None] * 4
    assert await repository.get_completed_steps("orders", FIRST) == ["reserve", "pack", "pack"]
    await engine.dispose()

    kept = rows(url)
    command.downgrade(alembic_config(url), "commandbus_0003")
    assert (described(url), rows(url), revision_of(url)) == (before, kept, "commandbus_0003")
    execute(url, OLDER_SOFTWARE.format(command=UUID(int=22)))
    command.upgrade(alembic_config(url), "head")
    assert alembic("check", url=url).returncode == 0
