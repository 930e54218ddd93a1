"""How Alembic reaches the database: which URL, which schema, whose transaction."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from psycopg.errors import RaiseException
from sqlalchemy import CheckConstraint, Connection, create_engine, inspect, pool, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SAWarning
from sqlalchemy.schema import CreateSchema

from commandbus_process.tables import VERSION_TABLE, metadata

config = context.config
if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)  # they are the host application's

SCHEMA = str(metadata.schema)
OPTIONS: dict[str, Any] = {
    "target_metadata": metadata,
    "version_table": VERSION_TABLE,
    "version_table_schema": SCHEMA,
    "include_schemas": True,
    # Alembic compares CHECK constraints, by name, only where it is asked to.
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
}
CHECKS = {
    constraint.name
    for table in metadata.tables.values()
    for constraint in table.constraints
    if isinstance(constraint, CheckConstraint)
}


def database_url() -> str:
    """Return the URL, in the form that makes SQLAlchemy use psycopg 3; the most explicit place wins."""
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
        # The error quotes the URL, and with it a password.
        raise CommandError("the database URL cannot be parsed; write postgresql://user@host/database") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise CommandError(f"the database URL must begin with postgresql://, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def include_name(name: str | None, kind: str, parents: Any) -> bool:  # noqa: ANN401 - Alembic's mapping
    """Look at the tables of this library only; others in the schema belong to the rest of the command bus."""
    if kind == "schema":
        return name == SCHEMA
    if kind == "table":
        return parents["schema_qualified_table_name"] in metadata.tables
    if kind == "check_constraint":
        return name in CHECKS  # others were added by whoever made the tables by hand
    return True


@contextmanager
def search_path_pinned(connection: Connection) -> Generator[None]:
    """Let only `pg_catalog` answer for functions and operators, and keep this schema off the search path.

    A function in another schema that fits an argument's type better than the server's would be called as the migrator's
    role. And if this schema were on the path, its tables would be reflected without it, and taken for others.
    """
    set_path = text("SELECT pg_catalog.set_config('search_path', :path, true)")  # until the transaction ends
    before, default = connection.scalar(text("SHOW search_path")), connection.dialect.default_schema_name
    connection.execute(set_path, {"path": "pg_catalog"})
    connection.dialect.default_schema_name = "pg_catalog"
    try:
        yield
        connection.execute(set_path, {"path": before})  # an error undoes it, with the rest of the transaction
    finally:
        connection.dialect.default_schema_name = default


def migrate(connection: Connection) -> None:
    with search_path_pinned(connection):
        # Several workers that start at once may all want to upgrade: one does, the others then find nothing left to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('commandbus_process.alembic', 0))"))
        # Alembic does not make the schema of its own version table. Asked first, because CREATE SCHEMA IF NOT EXISTS
        # needs the right to create schemas even if there is nothing to create.
        if not inspect(connection).has_schema(SCHEMA):
            connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
        context.configure(connection=connection, include_name=include_name, **OPTIONS)
        try:
            with context.begin_transaction(), warnings.catch_warnings():
                # SQLAlchemy and Alembic warn of each CHECK that is NOT VALID, when `alembic check` reads the tables.
                warnings.filterwarnings("ignore", "Can't validate argument '(dialect_options|not_valid)'", SAWarning)
                context.run_migrations()
        except DBAPIError as error:
            if not isinstance(error.orig, RaiseException):
                raise
            # A revision refuses to run, and says why: that is a message for a person, not a traceback.
            raise CommandError(str(error.orig).partition("\nCONTEXT:")[0]) from error


def run_online() -> None:
    given: Connection | None = config.attributes.get("connection")
    if given is not None:
        migrate(given)  # in the host's transaction, which the host commits
        return
    # SQLAlchemy looks for hstore when it connects, before the search path is pinned. No column here has that type.
    engine = create_engine(database_url(), poolclass=pool.NullPool, use_native_hstore=False)
    # Everything in one transaction that is begun here: Alembic joins it instead of committing a part of it.
    with engine.connect() as connection, connection.begin():
        migrate(connection)


def run_offline() -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    with context.begin_transaction():
        context.execute("SET LOCAL search_path = pg_catalog")  # as search_path_pinned does
        context.execute(CreateSchema(SCHEMA, if_not_exists=True))
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
