"""Several upgrades of one database at the same time, and one that is killed: one schema, whole or not there."""

import psycopg
from alembic import command

from commandbus_process.migrations import alembic_config
from tests.support.databases import Server, fresh_database
from tests.support.schema import PATIENCE, described, locked, rows, seed, sessions, upgrades, wait_until, waiting

AT_ONCE = 8


def revisions(url: str) -> list[tuple[str]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT version_num FROM commandbus.commandbus_process_version").fetchall()


def test_eight_upgrades_of_an_empty_database_at_once(newest_server: Server, empty_database_url: str) -> None:
    url = empty_database_url
    with upgrades(url, AT_ONCE) as processes:
        # Nobody can make the schema yet, so that all eight overlap, however slowly they start.
        with locked(url, "pg_catalog.pg_namespace", "EXCLUSIVE") as connection:
            wait_until(lambda: len(waiting(connection)) == 1 and sessions(connection) == AT_ONCE + 1, processes)
        told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * AT_ONCE, told
    # One did all of it, and the others found nothing left to do.
    assert sorted(text.count("Running upgrade") for text in told) == [0] * (AT_ONCE - 1) + [5]
    assert revisions(url) == [("commandbus_0005",)]
    command.check(alembic_config(url))
    with fresh_database(newest_server.url, newest_server.template) as once:
        assert described(url) == described(once)


def kill_half_way(url: str, table: str, mode: str, statement: str) -> None:
    """Kill an upgrade by SIGKILL when it waits, in that statement, for a lock on a table, and wait until it is over."""
    with upgrades(url, 1) as [process]:
        with locked(url, table, mode) as connection:
            wait_until(lambda: len(waiting(connection)) == 1, [process])
            [(pid, found)] = waiting(connection)
            assert statement in found
            process.kill()
            assert process.wait(timeout=PATIENCE) < 0
        # Its session learns of that when it has the lock, and wants to answer.
        with psycopg.connect(url, autocommit=True) as connection:
            gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
            wait_until(lambda: connection.execute(gone, (pid,)).fetchone() == (True,), [])


def test_killed_half_way_in_an_empty_database(newest_server: Server, empty_database_url: str) -> None:
    url = empty_database_url
    # The first trigger is made for the foreign key: the first table is there by then.
    kill_half_way(url, "pg_catalog.pg_trigger", "EXCLUSIVE", "CREATE TABLE commandbus.process_audit")
    assert not any(described(url).values())
    command.upgrade(alembic_config(url), "head")
    assert revisions(url) == [("commandbus_0005",)]
    with fresh_database(newest_server.url, newest_server.template) as once:
        assert described(url) == described(once)


def test_killed_half_way_in_a_database_with_rows(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    command.stamp(alembic_config(url), "commandbus_0001")
    schema, kept = described(url), rows(url)
    # Alembic writes the revision down when all of it is done, so the keys and indexes of 0002 are there by then.
    version_table = "commandbus.commandbus_process_version"
    kill_half_way(url, version_table, "SHARE", f"UPDATE {version_table}")
    assert (described(url), rows(url), revisions(url)) == (schema, kept, [("commandbus_0001",)])
    command.upgrade(alembic_config(url), "head")
    assert (rows(url), revisions(url)) == (kept, [("commandbus_0005",)])
    command.check(alembic_config(url))


def test_two_upgrades_at_once_of_a_database_with_rows(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    command.stamp(alembic_config(url), "commandbus_0001")
    kept = rows(url)
    with upgrades(url, 2) as processes:
        with locked(url, "commandbus.process", "ACCESS SHARE") as connection:
            # One waits for the table now and then, and holds the migrators' lock in another session all the time.
            wait_until(lambda: sessions(connection) == 3, processes)
        told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], told
    assert (rows(url), revisions(url)) == (kept, [("commandbus_0005",)])
