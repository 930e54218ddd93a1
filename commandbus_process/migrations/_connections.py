"""The connection that migrates: whether it can, what its statements see, and how several migrators take turns."""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager

from alembic.util import CommandError
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.util import await_only

from commandbus_process._schema_name import SchemaName
from commandbus_process.errors import InvalidInputError
from commandbus_process.tables import SCHEMA

_LONGEST_WAIT = 3600.0  # seconds: an upgrade that builds indexes on large tables takes long
_PAUSE = 0.1


def in_schema(schema: str, template: str) -> TextClause:
    """Return SQL about a schema: `{schema}` stands for it, `{name}` for its name as a text. It has no parameters."""
    return text(SchemaName(schema).fill(template).replace(":", r"\:"))


def sqlstate_of(error: DBAPIError) -> str | None:
    """Return the server's error code, from the driver of the library or of a host's migrations."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def pause(connection: Connection, seconds: float) -> None:
    """Wait, and let the event loop go on if the connection belongs to one."""
    if connection.dialect.is_async:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def check_can_migrate(connection: object) -> Connection:
    """Return the connection, if something can be migrated in its transaction.

    Raises:
        TypeError: It is no synchronous connection to PostgreSQL.
        InvalidInputError: It has no transaction, or is in autocommit.
    """
    if not isinstance(connection, Connection):
        if isinstance(connection, AsyncConnection):
            hint = "await migrate(connection), or await connection.run_sync(upgrade)"
        elif isinstance(connection, Engine | AsyncEngine):
            hint = "await migrate(engine), or take a connection: with engine.begin() as connection"
        elif connection is None:
            hint = "in Alembic's --sql mode there is none: op.execute() what migrations.sql() returns"
        else:
            hint = "a session has one: session.connection()"
        raise TypeError(f"connection must be an SQLAlchemy Connection, not {type(connection).__name__}; {hint}")
    if connection.dialect.name != "postgresql":
        raise TypeError(f"connection must be one to PostgreSQL, not to {connection.dialect.name}")
    if not connection.in_transaction():
        raise InvalidInputError(
            "connection", "has no transaction, so nothing would be kept; begin one: with engine.begin() as connection"
        )
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise InvalidInputError("connection", "is in autocommit, where a revision could be left half done")
    return connection


_PIN = "SELECT pg_catalog.set_config('search_path', 'pg_catalog', true)"  # until the transaction ends


def _pin(connection: Connection) -> None:
    connection.exec_driver_sql(_PIN)


@contextmanager
def search_path_pinned(connection: Connection) -> Generator[None]:
    """Set the search path to `pg_catalog` only, until the block or the transaction ends.

    Otherwise a function in another schema could be called with the migrator's rights, if its argument types fit better
    than those of the server's own function.
    """
    before = connection.scalar(text("SHOW search_path"))
    connection.execute(text(_PIN))
    yield
    set_path = text("SELECT pg_catalog.set_config('search_path', :path, true)")
    connection.execute(set_path, {"path": before})  # after an error, the rollback does this


@contextmanager
def reflecting(connection: Connection) -> Generator[None]:
    """Let SQLAlchemy write the schema's name before each table that it finds in the database.

    If this schema were on the search path, it would leave the name out, and Alembic would take the tables for others.
    """
    default = connection.dialect.default_schema_name
    connection.dialect.default_schema_name = "pg_catalog"
    try:
        yield
    finally:
        connection.dialect.default_schema_name = default


_TRY_LOCK = text("SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(:key, 0))")
# Settings of the migrator's role that would end the transaction with the lock. Older servers do not have all of them.
_KEEP_OPEN = text(
    "SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings "
    "WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)


def _lock_key(schema: str) -> str:
    return "commandbus_process.alembic" if schema == SCHEMA else f"commandbus_process.alembic {schema}"


def wait_until_alone(connection: Connection, schema: str, *, keep_transaction: bool) -> None:
    """Take the lock of the migrators until the transaction ends. If several workers upgrade at once, one does the work.

    The lock is tried again and again. A migrator that waits *in* the server would hold a snapshot, for which another
    one's CREATE INDEX CONCURRENTLY waits in turn.

    Args:
        connection: The connection.
        schema: The schema that is migrated. Each one has its own lock.
        keep_transaction: Whether the transaction is the host application's. Otherwise it ends between the tries.
    """
    deadline = time.monotonic() + _LONGEST_WAIT
    while not connection.scalar(_TRY_LOCK, {"key": _lock_key(schema)}):
        if time.monotonic() > deadline:
            raise CommandError("another upgrade has been running for an hour; look at it, then upgrade again")
        if not keep_transaction:
            connection.rollback()
        pause(connection, _PAUSE)


@contextmanager
def only_migrator(engine: Engine, schema: str) -> Generator[Connection]:
    """Yield a connection to migrate with, and hold the lock of the migrators meanwhile.

    The lock is held by a second connection, in a transaction that does nothing else. Not as a session's lock: behind a
    pooler like PgBouncer, a session is not always the same one. The transaction holds no snapshot while it is idle, so
    CREATE INDEX CONCURRENTLY does not wait for it.

    Raises:
        InvalidInputError: The engine's pool has only one connection.
    """
    with engine.connect() as holder:
        holder.execution_options(isolation_level="READ COMMITTED")
        wait_until_alone(holder, schema, keep_transaction=False)
        holder.execute(_KEEP_OPEN)
        try:
            connection = engine.connect()
        except PoolTimeoutError as error:
            raise InvalidInputError("engine", "needs a pool of two connections to migrate") from error
        with connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            event.listen(connection, "begin", _pin)
            yield connection
