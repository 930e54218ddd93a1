"""Run the `alembic` command on this library's revisions: `commandbus_process.migrations` by another door."""

from logging.config import fileConfig

from alembic import context
from alembic.operations import Operations
from sqlalchemy import Connection

from commandbus_process.migrations._change import Change
from commandbus_process.migrations._comparing import comparing, options
from commandbus_process.migrations._connections import only_migrator
from commandbus_process.migrations._running import explained, prepare, turn
from commandbus_process.migrations._url import migrators_engine
from commandbus_process.tables import SCHEMA

config = context.config
if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)  # they belong to the host application

arguments = context.get_x_argument(as_dictionary=True)
schema = str(arguments.get("schema") or config.attributes.get("schema") or SCHEMA)


def run(connection: Connection, *, in_one_transaction: bool) -> None:
    """Run the command on a connection: in its transaction, or each revision in its own."""
    context.configure(connection=connection, transaction_per_migration=not in_one_transaction, **options(schema))
    with explained(), comparing(connection), context.begin_transaction():
        context.run_migrations(change=Change(Operations(context.get_context()), schema))


def run_online() -> None:
    given: Connection | None = config.attributes.get("connection")
    if given is not None:  # a host's, which commits
        with turn(given, schema):
            run(given, in_one_transaction=True)
        return
    # The most explicit setting wins.
    url = arguments.get("url") or config.attributes.get("url") or None
    with only_migrator(migrators_engine(url, config.get_main_option("sqlalchemy.url")), schema) as connection:
        prepare(connection, schema)
        connection.commit()
        # Each revision has its own transaction, so that no table is locked for longer than its own revision needs.
        run(connection, in_one_transaction=False)
        connection.commit()  # the version table, if there was no revision to run


def run_offline() -> None:
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=True,
        **options(schema),
    )
    change = Change(Operations(context.get_context()), schema)
    context.execute("SET search_path = pg_catalog")  # as search_path_pinned does
    change.create_schema()
    with context.begin_transaction():
        context.run_migrations(change=change)
    context.execute("RESET search_path")


if context.is_offline_mode():
    run_offline()
else:
    run_online()
