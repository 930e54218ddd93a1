"""Databases at any revision of the schema, with rows, and what is in them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from alembic import command

from commandbus_process.migrations import alembic_config
from tests.support import ROOT
from tests.support.databases import execute

BASELINE = (Path(__file__).parent / "baseline.sql").read_text()
FIRST, SECOND = UUID(int=1), UUID(int=2)
COMMAND = UUID(int=7)


def alembic(*arguments: str, url: str | None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in the repository's root."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if url is not None:
        environment["DATABASE_URL"] = url
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def succeeds(*arguments: str, url: str | None) -> str:
    result = alembic(*arguments, url=url)
    assert result.returncode == 0, result.stderr
    return result.stdout


def described(url: str) -> dict[str, set[tuple[object, ...]]]:
    """The definitions of all columns, constraints and indexes in the schema, from the catalogue."""
    queries = {
        "columns": "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_schema = 'commandbus'",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = to_regnamespace('commandbus') AND contype <> 'n'",
        "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'commandbus'",
    }
    with psycopg.connect(url) as connection:
        return {
            what: {row for row in connection.execute(query.encode()) if "version" not in str(row[0])}
            for what, query in queries.items()
        }


def seed(url: str) -> None:
    """The tables made by hand, and rows in them."""
    execute(url, BASELINE)
    execute(
        url,
        f"""
        INSERT INTO commandbus.process (domain, process_id, process_type, status, state) VALUES
            ('orders', '{FIRST}', 'order', 'WAITING', '{{"total": 12.5}}'),
            ('orders', '{SECOND}', 'order', 'PENDING', '{{}}');
        INSERT INTO commandbus.process_audit
            (domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, received_at)
        VALUES
            ('orders', '{FIRST}', 'reserve', '{COMMAND}', 'Reserve', '{{"a": 1}}', '2026-03-01T12:00Z',
                'SUCCESS', '2026-03-01T12:01Z'),
            ('orders', '{FIRST}', 'charge', '{UUID(int=8)}', 'Charge', NULL, '2026-03-01T12:02Z', NULL, NULL),
            ('orders', '{SECOND}', 'reserve', '{COMMAND}', 'Reserve', NULL, '2026-03-01T12:00Z', NULL, NULL);
        """,
    )


def rows(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        columns = "domain, process_id, process_type, status, state, created_at, updated_at"
        processes = connection.execute(f"SELECT {columns} FROM commandbus.process ORDER BY process_id".encode())
        columns = "id, domain, process_id, step_name, command_id, command_data, sent_at, reply_outcome, received_at"
        return [
            *processes.fetchall(),
            *connection.execute(f"SELECT {columns} FROM commandbus.process_audit ORDER BY id".encode()).fetchall(),
        ]


def attempt(connection: psycopg.Connection[Any], statement: str) -> None:
    try:
        connection.execute(statement.encode())
    finally:
        connection.rollback()


STEP = "commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at"
VERSIONS = "commandbus.commandbus_process_version"


def adopted(url: str, revision: str) -> None:
    """Tables made by hand, with rows, at a revision. Faster than the command, which other tests run."""
    seed(url)
    command.stamp(alembic_config(url), "commandbus_0001")
    command.upgrade(alembic_config(url), revision)


def revision_of(url: str) -> object:
    with psycopg.connect(url) as connection:
        [(found,)] = connection.execute(f"SELECT version_num FROM {VERSIONS}".encode()).fetchall()
        return found


PATIENCE = 120  # seconds

Upgrade = subprocess.Popen[str]


@contextmanager
def upgrades(url: str, number: int) -> Generator[list[Upgrade]]:
    """Start `alembic upgrade head` in so many processes, as users do; none of them is left behind."""
    started: list[Upgrade] = []
    environment = {**os.environ, "DATABASE_URL": url}
    try:
        for _ in range(number):
            process = subprocess.Popen(
                [sys.executable, "-m", "alembic", "upgrade", "head"],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            started.append(process)
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=PATIENCE)


@contextmanager
def locked(url: str, table: str, mode: str) -> Generator[psycopg.Connection[Any]]:
    """Hold a lock that upgrades run into, until the block ends."""
    with psycopg.connect(url) as connection:
        connection.execute(f"LOCK TABLE {table} IN {mode} MODE".encode())
        yield connection
        connection.rollback()


def wait_until(condition: Callable[[], bool], processes: list[Upgrade]) -> None:
    """Return once the condition holds; fail if a process ends before that."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate(timeout=PATIENCE)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def waiting(connection: psycopg.Connection[Any]) -> list[tuple[int, str]]:
    """The sessions of this database that wait for a lock, and their statements."""
    connection.execute("SELECT pg_stat_clear_snapshot()")  # else the view stays the same within a transaction
    found = connection.execute(
        "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return found.fetchall()


def sessions(connection: psycopg.Connection[Any]) -> int:
    """How many others are connected: each upgrade, and twice the one that has the lock of the migrators."""
    connection.execute("SELECT pg_stat_clear_snapshot()")
    [(number,)] = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ).fetchall()
    return int(number)
