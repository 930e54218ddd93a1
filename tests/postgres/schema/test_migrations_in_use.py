"""An upgrade of a database that is in use: nobody waits for long, and an interrupted one is finished by the next."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import make_url

from commandbus_process.migrations import alembic_config
from tests.support.databases import Server, async_url, execute
from tests.support.pgbouncer import NOT_PREPARING, login_role, running_pgbouncer
from tests.support.schema import (
    FIRST,
    PATIENCE,
    adopted,
    locked,
    revision_of,
    rows,
    sessions,
    upgrades,
    wait_until,
    waiting,
)

INDEXES = ("idx_process_business_key", "idx_process_deadline")


@contextmanager
def snapshot(url: str) -> Generator[psycopg.Connection[Any]]:
    """Hold an old snapshot, for which CREATE INDEX CONCURRENTLY waits, until the block ends."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT 1")
        yield connection
        connection.rollback()


def builds(connection: psycopg.Connection[Any]) -> list[int]:
    return [pid for pid, query in waiting(connection) if query.startswith("CREATE INDEX CONCURRENTLY")]


def validity(url: str) -> dict[str, bool]:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE relname = ANY (%s)",
            (list(INDEXES),),
        )
        return dict(found.fetchall())


def upgrade_in(connection: Connection) -> None:
    """Upgrade in the transaction of a host application."""
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@pytest.mark.parametrize("finisher", ["the next upgrade", "a host's transaction"])
def test_an_upgrade_that_was_interrupted_is_finished_by_the_next(empty_database_url: str, finisher: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0004")
    kept = rows(url)
    with snapshot(url) as connection, upgrades(url, 1) as [process]:
        wait_until(lambda: bool(builds(connection)), [process])
        connection.execute("SELECT pg_terminate_backend(%s)", (builds(connection)[0],))
        assert process.wait(timeout=PATIENCE) != 0
    assert (revision_of(url), validity(url)) == ("commandbus_0004", {"idx_process_deadline": False})
    if finisher == "the next upgrade":
        command.upgrade(alembic_config(url), "head")
    else:
        engine = create_engine(async_url(url))
        with engine.begin() as host:
            upgrade_in(host)
        engine.dispose()
    assert (revision_of(url), validity(url)) == ("commandbus_0005", dict.fromkeys(INDEXES, True))
    assert rows(url) == kept
    command.check(alembic_config(url))


def test_an_index_that_is_there_already_is_kept(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0004")
    execute(
        url,
        "ALTER TABLE commandbus.process ADD COLUMN business_key varchar(255); "
        "CREATE INDEX idx_process_business_key ON commandbus.process (domain, business_key) "
        "WHERE business_key IS NOT NULL",
    )
    with psycopg.connect(url) as connection:
        find = "SELECT 'commandbus.idx_process_business_key'::regclass::oid"
        before = connection.execute(find).fetchall()
        connection.commit()
        command.upgrade(alembic_config(url), "head")
        assert connection.execute(find).fetchall() == before


def test_another_index_of_that_name_is_an_error(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0004")
    execute(url, "CREATE INDEX idx_process_deadline ON commandbus.process (domain)")
    with pytest.raises(CommandError, match="idx_process_deadline is not the index that is needed"):
        command.upgrade(alembic_config(url), "head")
    assert revision_of(url) == "commandbus_0004"


def test_a_second_upgrade_does_not_keep_the_first_one_from_building(empty_database_url: str) -> None:
    """One that waited in the server would hold a snapshot, and both would wait for each other."""
    url = empty_database_url
    adopted(url, "commandbus_0004")
    with upgrades(url, 2) as processes:
        with snapshot(url) as connection:
            wait_until(lambda: bool(builds(connection)) and sessions(connection) == 3, processes)
        told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], told
    assert (revision_of(url), validity(url)) == ("commandbus_0005", dict.fromkeys(INDEXES, True))


@pytest.mark.usefixtures("login")  # skips without PgBouncer
def test_one_upgrade_at_a_time_behind_a_transaction_pooler(empty_database_url: str, newest_server: Server) -> None:
    """There, each transaction has another session, so the lock of a session would be nobody's."""
    url = empty_database_url
    adopted(url, "commandbus_0004")
    owner = make_url(newest_server.url).username
    assert owner is not None
    with (
        login_role(newest_server.url, owner) as name,
        running_pgbouncer(newest_server.url, name, "default_pool_size = 8", *NOT_PREPARING) as pgbouncer,
        upgrades(pgbouncer.in_front_of(url), 4) as processes,
    ):
        with snapshot(url) as connection:
            wait_until(lambda: bool(builds(connection)) and sessions(connection) > 3, processes)
            assert len(builds(connection)) == 1
        told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4, told
    assert (revision_of(url), validity(url)) == ("commandbus_0005", dict.fromkeys(INDEXES, True))


def test_writers_pass_an_upgrade_that_waits_for_a_report(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0003")
    write = f"UPDATE commandbus.process SET updated_at = now() WHERE process_id = '{FIRST}'"
    with upgrades(url, 1) as [process]:
        with locked(url, "commandbus.process", "ACCESS SHARE") as report, psycopg.connect(url) as writer:
            # If the upgrade waited until the report ends, so would every writer behind it.
            writer.execute("SET lock_timeout = '20s'")
            for _ in range(3):
                wait_until(lambda: any("LOCK TABLE" in query for _, query in waiting(report)), [process])
                writer.execute(write.encode())
                writer.commit()
            assert revision_of(url) == "commandbus_0003"
        assert process.wait(timeout=PATIENCE) == 0
    assert revision_of(url) == "commandbus_0005"


def test_a_host_upgrades_in_its_transaction(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0003")
    engine = create_engine(async_url(url))
    with engine.connect() as connection, connection.begin() as transaction:
        before = connection.exec_driver_sql("SHOW lock_timeout").scalar()
        upgrade_in(connection)
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == before
        transaction.rollback()
    assert (revision_of(url), validity(url)) == ("commandbus_0003", {})
    engine.dispose()
