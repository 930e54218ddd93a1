"""Up, down, up again; adoption of the tables that were made by hand; what is refused, and what is printed offline."""

import logging
import os
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import PostgresProcessRepository, ProcessAuditEntry, ProcessStatus, ReplyOutcome
from commandbus_process.migrations import alembic_config
from tests.support import ROOT
from tests.support.databases import Server, async_url, execute, execute_script, fresh_database
from tests.support.schema import BASELINE, COMMAND, FIRST, SECOND, alembic, described, rows, seed, succeeds


def without_other_tables(description: dict[str, set[tuple[object, ...]]]) -> dict[str, set[tuple[object, ...]]]:
    ours = {"process", "process_audit", "commandbus.process", "commandbus.process_audit"}
    return {what: {row for row in rows if row[0] in ours} for what, rows in description.items()}


def test_up_down_and_up_again(empty_database_url: str) -> None:
    url = empty_database_url
    succeeds("upgrade", "head", url=url)
    first = described(url)
    assert succeeds("current", url=url).startswith("commandbus_0005 (head)")
    succeeds("downgrade", "base", url=url)
    assert all(not rows for rows in described(url).values())
    succeeds("upgrade", "head", url=url)
    assert described(url) == first


def test_revision_0001_is_the_baseline_to_the_letter(newest_server: Server, empty_database_url: str) -> None:
    succeeds("upgrade", "commandbus_0001", url=empty_database_url)
    with fresh_database(newest_server.url) as by_hand:
        execute(by_hand, BASELINE)
        assert described(empty_database_url) == without_other_tables(described(by_hand))


def test_downgrading_one_revision_restores_the_baseline(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    before, kept = described(url), rows(url)
    succeeds("stamp", "commandbus_0001", url=url)
    succeeds("upgrade", "head", url=url)
    succeeds("downgrade", "commandbus_0001", url=url)
    assert described(url) == before
    assert rows(url) == kept


def test_tables_and_migrations_agree(empty_database_url: str) -> None:
    succeeds("upgrade", "head", url=empty_database_url)
    assert "No new upgrade operations detected" in succeeds("check", url=empty_database_url)


def test_check_with_our_schema_on_the_search_path_and_other_tables_in_it(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    with psycopg.connect(url) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET search_path TO commandbus, public").format(name))
    succeeds("stamp", "commandbus_0001", url=url)
    succeeds("upgrade", "head", url=url)
    assert "No new upgrade operations detected" in succeeds("check", url=url)


def test_a_hosts_connection_with_our_schema_on_its_search_path(database_url: str) -> None:
    engine = create_engine(async_url(database_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("SET search_path TO commandbus, public")
        config = alembic_config()
        config.attributes["connection"] = connection
        command.check(config)
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "commandbus, public"
    engine.dispose()


@pytest.mark.own_database
@pytest.mark.parametrize(
    "drift",
    [
        "ALTER TABLE commandbus.process DROP COLUMN version",
        "ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_command_key",
        "DROP INDEX commandbus.idx_process_status_created",
        "ALTER TABLE commandbus.process ALTER COLUMN state DROP NOT NULL",
        "ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_reply_check",
    ],
)
def test_check_notices_a_drift(database_url: str, drift: str) -> None:
    execute(database_url, drift)
    assert alembic("check", url=database_url).returncode != 0


async def test_adoption_keeps_rows_and_the_repository_works_on_them(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    kept = rows(url)
    succeeds("stamp", "commandbus_0001", url=url)
    succeeds("upgrade", "head", url=url)
    assert rows(url) == kept
    # Software that writes plain SQL goes on working.
    execute(
        url,
        f"""
        INSERT INTO commandbus.process (domain, process_id, process_type) VALUES ('orders', '{UUID(int=3)}', 'order');
        INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at)
            VALUES ('orders', '{UUID(int=3)}', 'reserve', '{COMMAND}', 'Reserve', now());
        UPDATE commandbus.process SET status = 'IN_PROGRESS', updated_at = now() WHERE process_id = '{UUID(int=3)}';
        """,
    )
    engine = create_async_engine(async_url(url))
    repository = PostgresProcessRepository(engine)
    found = await repository.get_by_id("orders", FIRST)
    assert found is not None
    assert (found.version, found.state, found.status) == (1, {"total": 12.5}, ProcessStatus.WAITING_FOR_REPLY)
    await repository.update(found)
    answer = ProcessAuditEntry(step_name="charge", command_id=UUID(int=8), reply_outcome=ReplyOutcome.SUCCESS)
    await repository.update_step_reply("orders", FIRST, UUID(int=8), answer)
    assert await repository.get_completed_steps("orders", FIRST) == ["reserve", "charge"]
    await engine.dispose()


def test_adoption_with_any_names_of_the_constraints(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    execute(
        url,
        'ALTER TABLE commandbus.process_audit RENAME CONSTRAINT process_audit_pkey TO "Audit\'s key";'
        "ALTER TABLE commandbus.process RENAME CONSTRAINT process_pkey TO pk_process;"
        "DROP INDEX commandbus.idx_process_audit_command",
    )
    succeeds("stamp", "commandbus_0001", url=url)
    succeeds("upgrade", "head", url=url)
    assert "No new upgrade operations detected" in succeeds("check", url=url)


def test_rows_that_break_the_new_constraint_are_named_and_nothing_changes(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    execute(
        url,
        "INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at) "
        f"VALUES ('orders', '{FIRST}', 'again', '{COMMAND}', 'Reserve', now())",
    )
    succeeds("stamp", "commandbus_0001", url=url)
    before, kept = described(url), rows(url)
    result = alembic("upgrade", "head", url=url)
    assert result.returncode != 0
    assert f"domain 'orders', process {FIRST}, command {COMMAND}: rows with id 1, 4" in result.stdout + result.stderr
    assert str(SECOND) not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert described(url) == before
    assert rows(url) == kept
    assert succeeds("current", url=url).strip() == "commandbus_0001"


def test_many_rows_that_break_the_new_constraint_are_counted_and_the_first_twenty_named(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    seed(url)
    execute(
        url,
        "INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at) "
        f"SELECT 'orders', '{FIRST}', 'again', ('00000000-0000-0000-0000-0000000001' || to_char(n % 25, 'FM00'))::uuid,"
        " 'Reserve', now() FROM generate_series(1, 50) AS n",
    )
    succeeds("stamp", "commandbus_0001", url=url)
    result = alembic("upgrade", "head", url=url)
    told = result.stdout + result.stderr
    assert "25 command(s) are logged more than once" in told
    assert [number for number in range(25) if f"0000000001{number:02}:" in told] == list(range(20))


def test_a_baseline_that_was_not_stamped_is_an_error_with_the_remedy(empty_database_url: str) -> None:
    seed(empty_database_url)
    kept = rows(empty_database_url)
    result = alembic("upgrade", "head", url=empty_database_url)
    assert result.returncode != 0
    assert 'run "python -m commandbus_process.migrations adopt"' in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert rows(empty_database_url) == kept


def test_offline_sql_makes_the_same_schema(newest_server: Server, empty_database_url: str) -> None:
    script = succeeds("upgrade", "head", "--sql", url=None)
    succeeds("upgrade", "head", url=empty_database_url)
    with fresh_database(newest_server.url) as offline:
        execute_script(offline, script)
        assert described(offline) == described(empty_database_url)
        assert succeeds("current", url=offline).startswith("commandbus_0005 (head)")
        execute_script(offline, succeeds("downgrade", "head:base", "--sql", url=None))
        assert all(not rows for rows in described(offline).values())


def test_offline_sql_adopts_a_baseline_and_refuses_duplicates(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    succeeds("stamp", "commandbus_0001", url=url)
    script = succeeds("upgrade", "commandbus_0001:head", "--sql", url=None)
    execute(url, f"UPDATE commandbus.process_audit SET command_id = '{COMMAND}'")
    with pytest.raises(psycopg.errors.RaiseException, match="rows with id 1, 2"):
        execute_script(url, script)
    execute(url, f"UPDATE commandbus.process_audit SET command_id = '{UUID(int=8)}' WHERE id = 2")
    execute_script(url, script)
    assert succeeds("current", url=url).startswith("commandbus_0005 (head)")


def test_the_version_table_is_ours_alone(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables = connection.execute("SELECT schemaname, tablename FROM pg_tables WHERE tablename LIKE '%version%'")
        assert ("commandbus", "commandbus_process_version") in tables.fetchall()
        assert connection.execute("SELECT to_regclass('public.alembic_version')").fetchone() == (None,)


@pytest.mark.parametrize("form", ["postgresql://", "postgresql+psycopg://", "postgres://"])
def test_forms_of_the_url(empty_database_url: str, form: str) -> None:
    url = empty_database_url.replace("postgresql://", form, 1)
    assert url.startswith(form)
    succeeds("upgrade", "head", url=url)
    assert succeeds("-x", f"url={url}", "current", url=None).startswith("commandbus_0005")


def test_x_wins_over_the_environment(empty_database_url: str) -> None:
    assert (
        alembic("-x", f"url={empty_database_url}", "upgrade", "head", url="postgresql://127.0.0.1:1/x").returncode == 0
    )


def test_the_url_in_the_ini_file(empty_database_url: str, tmp_path: Path) -> None:
    text = (ROOT / "alembic.ini").read_text().replace("%(here)s", str(ROOT))
    url = empty_database_url.replace("%", "%%")
    (tmp_path / "alembic.ini").write_text(
        text.replace("# sqlalchemy.url = postgresql://user@host/database", f"sqlalchemy.url = {url}")
    )
    succeeds("-c", str(tmp_path / "alembic.ini"), "upgrade", "head", url=None)
    assert succeeds("current", url=empty_database_url).startswith("commandbus_0005")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (None, "set DATABASE_URL=postgresql://"),
        ("", "set DATABASE_URL=postgresql://"),
        ("mysql://user:hunter2@host/x", "must begin with postgresql://"),
        ("hunter2", "cannot be parsed"),
        ("postgresql://user:hunter2@host:port/x", "cannot be parsed"),
    ],
)
def test_an_unusable_url_is_an_error_in_one_sentence(url: str | None, told: str) -> None:
    result = alembic("upgrade", "head", url=url)
    assert result.returncode != 0
    assert told in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "hunter2" not in result.stdout + result.stderr


def test_a_role_that_may_not_create_schemas_can_migrate_in_one_that_is_there(empty_database_url: str) -> None:
    role = f"migrator_{os.getpid()}"
    execute(empty_database_url, f"CREATE ROLE {role} LOGIN; CREATE SCHEMA commandbus AUTHORIZATION {role}")
    try:
        engine = create_engine(async_url(empty_database_url))
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        engine.dispose()
    finally:
        execute(empty_database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_inside_a_hosts_transaction_and_a_running_loop(empty_database_url: str) -> None:
    engine = create_async_engine(async_url(empty_database_url))
    config = alembic_config()

    def upgrade(connection: object) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    try:
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
            await connection.rollback()
        assert all(not rows for rows in described(empty_database_url).values())
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)
        assert described(empty_database_url)["columns"]
    finally:
        await engine.dispose()


def test_the_hosts_loggers_stay_enabled(empty_database_url: str) -> None:
    logger = logging.getLogger("host.application")
    config = Config(str(ROOT / "alembic.ini"))
    config.attributes["url"] = empty_database_url
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        command.current(config)
    finally:
        logging.root.handlers[:], logging.root.level = handlers, level
    assert not logger.disabled


def test_the_configuration_keeps_a_percent_sign_in_the_url(empty_database_url: str) -> None:
    command.upgrade(alembic_config(empty_database_url.replace("/commandbus_test", "/%63ommandbus_test")), "head")


def test_a_configuration_without_url_reads_the_environment(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(CommandError, match="DATABASE_URL"):
        command.upgrade(alembic_config(), "head")
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    command.upgrade(alembic_config(), "head")
    assert described(empty_database_url)["columns"]
