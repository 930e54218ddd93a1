"""Connect Alembic to the database: the URL, the schema, and the transaction."""

import os
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from psycopg.errors import RaiseException
from sqlalchemy import CheckConstraint, Connection, Engine, create_engine, event, inspect, pool, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SAWarning
from sqlalchemy.schema import CreateSchema

from commandbus_process.tables import VERSION_TABLE, metadata

config = context.config
if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)  # they belong to the host application

SCHEMA = str(metadata.schema)
OPTIONS: dict[str, Any] = {
    "target_metadata": metadata,
    "version_table": VERSION_TABLE,
    "version_table_schema": SCHEMA,
    "include_schemas": True,
    # Without the second plugin, Alembic does not compare CHECK constraints. It compares them by name.
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
}
CHECKS = {
    constraint.name
    for table in metadata.tables.values()
    for constraint in table.constraints
    if isinstance(constraint, CheckConstraint)
}


def database_url() -> str:
    """Return the URL, in the form that makes SQLAlchemy use psycopg 3. The most explicit setting wins."""
    given = (
        context.get_x_argument(as_dictionary=True).get("url")
        or config.attributes.get("url")
        or os.environ.get("DATABASE_URL")
        or config.get_main_option("sqlalchemy.url")
    )
    if not given:
        raise CommandError(
            "no database is named: set DATABASE_URL=postgresql://user@host/database, or pass -x url=… before the "
            "command, or set sqlalchemy.url in alembic.ini"
        )
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # The original error quotes the URL, which may contain a password.
        raise CommandError("the database URL cannot be parsed; write postgresql://user@host/database") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise CommandError(f"the database URL must begin with postgresql://, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def include_name(name: str | None, kind: str, parents: Any) -> bool:  # noqa: ANN401 - Alembic's mapping
    """Look only at the tables of this library. Other tables in the schema belong to the rest of the command bus."""
    if kind == "schema":
        return name == SCHEMA
    if kind == "table":
        return parents["schema_qualified_table_name"] in metadata.tables
    if kind == "check_constraint":
        return name in CHECKS  # tables that were created by hand may have others
    return True


PIN_SEARCH_PATH = "SELECT pg_catalog.set_config('search_path', 'pg_catalog', true)"  # until the transaction ends


@contextmanager
def search_path_pinned(connection: Connection) -> Generator[None]:
    """Set the search path to `pg_catalog` only, until the transaction ends.

    Otherwise a function in another schema could be called with the migrator's rights, if its argument types fit better
    than those of the server's own function. And if this schema were on the path, Alembic would see its tables without
    the schema's name, and take them for other tables.
    """
    before, default = connection.scalar(text("SHOW search_path")), connection.dialect.default_schema_name
    connection.execute(text(PIN_SEARCH_PATH))
    connection.dialect.default_schema_name = "pg_catalog"
    try:
        yield
        set_path = text("SELECT pg_catalog.set_config('search_path', :path, true)")
        connection.execute(set_path, {"path": before})  # after an error, the rollback does this
    finally:
        connection.dialect.default_schema_name = default


TRY_LOCK = text(
    "SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('commandbus_process.alembic', 0))"
)
# Settings of the migrator's role that would end the transaction with the lock. Older servers do not have all of them.
KEEP_OPEN = text(
    "SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings "
    "WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
LONGEST_WAIT = 3600.0  # seconds: an upgrade that builds indexes on large tables takes long
PAUSE = 0.1


def wait_until_alone(connection: Connection, *, keep_transaction: bool) -> None:
    """Take the lock of the migrators until the transaction ends. If several workers upgrade at once, one does the work.

    The lock is tried again and again. A migrator that waits *in* the server would hold a snapshot, for which another
    one's CREATE INDEX CONCURRENTLY waits in turn.

    Args:
        connection: The connection.
        keep_transaction: Whether the transaction is the host application's. Otherwise it ends between the tries.
    """
    deadline = time.monotonic() + LONGEST_WAIT
    while not connection.scalar(TRY_LOCK):
        if time.monotonic() > deadline:
            raise CommandError("another upgrade has been running for an hour; look at it, then upgrade again")
        if not keep_transaction:
            connection.rollback()
        time.sleep(PAUSE)


@contextmanager
def only_migrator(engine: Engine) -> Generator[None]:
    """Hold the lock of the migrators in a transaction of its own, which does nothing else.

    Not as a session's lock: behind a pooler like PgBouncer, a session is not always the same one. The transaction holds
    no snapshot while it is idle, so CREATE INDEX CONCURRENTLY does not wait for it.
    """
    with engine.connect() as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        wait_until_alone(connection, keep_transaction=False)
        connection.execute(KEEP_OPEN)
        yield


def create_schema(connection: Connection) -> None:
    """Create the schema. Alembic does not create the schema of its own version table.

    Look first, because CREATE SCHEMA IF NOT EXISTS needs the right to create schemas even if the schema exists.
    """
    if not inspect(connection).has_schema(SCHEMA):
        connection.execute(CreateSchema(SCHEMA, if_not_exists=True))


def migrate(connection: Connection, *, in_one_transaction: bool) -> None:
    """Run the command on a connection: in its transaction, or each revision in its own."""
    context.configure(
        connection=connection,
        include_name=include_name,
        transaction_per_migration=not in_one_transaction,
        **OPTIONS,
    )
    try:
        with context.begin_transaction(), warnings.catch_warnings():
            # When `alembic check` reads the tables, SQLAlchemy and Alembic warn about each CHECK that is NOT VALID.
            warnings.filterwarnings("ignore", "Can't validate argument '(dialect_options|not_valid)'", SAWarning)
            context.run_migrations()
    except DBAPIError as error:
        if not isinstance(error.orig, RaiseException):
            raise
        # A revision raised an error that explains why it cannot run. Print its message, without a traceback.
        raise CommandError(str(error.orig).partition("\nCONTEXT:")[0]) from error


def run_in_the_hosts_transaction(connection: Connection) -> None:
    """Do everything in the transaction of the host application, which commits it."""
    with search_path_pinned(connection):
        wait_until_alone(connection, keep_transaction=True)
        create_schema(connection)
        migrate(connection, in_one_transaction=True)


def run_online() -> None:
    given: Connection | None = config.attributes.get("connection")
    if given is not None:
        run_in_the_hosts_transaction(given)
        return
    # SQLAlchemy looks for hstore when it connects, before the search path is pinned. No column here has that type.
    engine = create_engine(database_url(), poolclass=pool.NullPool, use_native_hstore=False)
    with only_migrator(engine), engine.connect() as connection:

        @event.listens_for(connection, "begin")
        def pin_search_path(begun: Connection) -> None:
            begun.exec_driver_sql(PIN_SEARCH_PATH)

        connection.dialect.default_schema_name = "pg_catalog"  # see search_path_pinned
        create_schema(connection)
        connection.commit()
        # Each revision has its own transaction, so that no table is locked for longer than its own revision needs.
        migrate(connection, in_one_transaction=False)
        connection.commit()  # the version table, if there was no revision to run


def run_offline() -> None:
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=True,
        **OPTIONS,
    )
    context.execute("SET search_path = pg_catalog")  # as search_path_pinned does
    context.execute(CreateSchema(SCHEMA, if_not_exists=True))
    with context.begin_transaction():
        context.run_migrations()
    context.execute("RESET search_path")


if context.is_offline_mode():
    run_offline()
else:
    run_online()
