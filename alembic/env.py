"""How Alembic reaches the database: which URL, which schema, whose transaction."""

import os
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from psycopg.errors import RaiseException
from sqlalchemy import Connection, create_engine, inspect, pool, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.schema import CreateSchema

from commandbus_process.tables import metadata

config = context.config
if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)  # they are the host application's

SCHEMA = "commandbus"
OPTIONS: dict[str, Any] = {
    "target_metadata": metadata,
    # A name and a place of its own: the default `alembic_version` belongs to the host application.
    "version_table": "commandbus_process_version",
    "version_table_schema": SCHEMA,
    "include_schemas": True,
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
    return True


def migrate(connection: Connection) -> None:
    # Several workers that start at once may all want to upgrade: one does, the others then find nothing left to do.
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('commandbus_process.alembic', 0))"))
    # Alembic does not make the schema of its own version table. Asked first, because CREATE SCHEMA IF NOT EXISTS needs
    # the right to create schemas even where there is nothing to create.
    if not inspect(connection).has_schema(SCHEMA):
        connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
    context.configure(connection=connection, include_name=include_name, **OPTIONS)
    try:
        with context.begin_transaction():
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
    engine = create_engine(database_url(), poolclass=pool.NullPool)
    # Everything in one transaction that is begun here: Alembic joins it instead of committing a part of it.
    with engine.connect() as connection, connection.begin():
        # Tables on the search path are reflected without their schema, and would be taken for others.
        connection.execute(text("SET LOCAL search_path TO pg_catalog"))
        connection.dialect.default_schema_name = "pg_catalog"
        migrate(connection)


def run_offline() -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    with context.begin_transaction():
        context.execute(CreateSchema(SCHEMA, if_not_exists=True))
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
