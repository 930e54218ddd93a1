"""Run the revisions on a connection or an engine, without Alembic's `env.py` and its global objects."""

import io
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

from commandbus_process._schema_name import checked_schema
from commandbus_process.migrations._change import Change
from commandbus_process.migrations._connections import (
    check_can_migrate,
    in_schema,
    only_migrator,
    search_path_pinned,
    sqlstate_of,
    wait_until_alone,
)
from commandbus_process.migrations._history import RENAME, full_name, rename_old_revision, revisions_in, scripts
from commandbus_process.tables import SCHEMA, VERSION_TABLE

_RAISED = "P0001"  # RAISE EXCEPTION in a revision
Way: TypeAlias = Literal["upgrade", "downgrade"]


def upgrade(connection: Connection, to: str = "head", *, schema: str = SCHEMA) -> None:
    """Upgrade the schema in the transaction of a connection. You commit.

    It can be called within a revision of your own, `upgrade(op.get_bind(), to="commandbus_0005")`, and within your
    `env.py`: it does not use Alembic's global `op` and `context`. From asynchronous code, call `migrate`.

    Every revision is done in the one transaction, so the tables that it locks stay locked until you commit, and indexes
    are not built concurrently. It waits for others who migrate this schema. The search path is `pg_catalog` meanwhile.

    Args:
        connection: A connection to PostgreSQL, with a transaction.
        to: The revision: `head`, or a name like `commandbus_0005`. Name it in a revision of your own, so that it does
            the same in a year.
        schema: The schema that has the tables, or gets them. It is created if it is missing.

    Raises:
        CommandError: Alembic's. A revision cannot run on these tables, and says why; nothing of it was done. Or there
            is no such revision.
        InvalidInputError: The connection has no transaction, or is in autocommit.
        TypeError: It is no synchronous connection to PostgreSQL.
    """
    _run_in_transaction("upgrade", connection, to, schema)


def downgrade(connection: Connection, to: str, *, schema: str = SCHEMA) -> None:
    """Downgrade the schema in the transaction of a connection. You commit.

    What is lost by each revision is in docs/schema.md. `base` drops both tables with their rows. The schema stays.

    Args:
        connection: As in `upgrade`.
        to: The revision, or `base`.
        schema: The schema that has the tables.

    Raises:
        CommandError: As in `upgrade`.
        InvalidInputError: As in `upgrade`.
        TypeError: As in `upgrade`.
    """
    _run_in_transaction("downgrade", connection, to, schema)


def stamp(connection: Connection, revision: str, *, schema: str = SCHEMA) -> None:
    """Write down that the tables are at a revision, without looking at them. You commit.

    Prefer `python -m commandbus_process.migrations adopt`, which looks first.

    Args:
        connection: As in `upgrade`.
        revision: The revision, or `base`.
        schema: The schema that has the tables.

    Raises:
        CommandError: There is no such revision.
        InvalidInputError: As in `upgrade`.
        TypeError: As in `upgrade`.
    """
    check_can_migrate(connection)
    with turn(connection, schema):
        context = MigrationContext.configure(connection, opts=context_options(schema))
        context.stamp(scripts(), full_name(revision))


async def migrate(target: AsyncEngine | AsyncConnection, to: str = "head", *, schema: str = SCHEMA) -> None:
    """Upgrade the schema, from asynchronous code: at the start of an application, or in its tests.

    Several processes may call it at once. One does the work, and the others wait and find nothing left to do.

    Args:
        target: An engine: each revision has a transaction of its own, so that no table is locked for longer than its
            own revision needs, and indexes are built while others read and write. It takes two connections. Or your
            connection: everything is done in its transaction, as in `upgrade`, and you commit.
        to: The revision: `head`, or a name like `commandbus_0005`.
        schema: The schema that has the tables, or gets them. It is created if it is missing.

    Raises:
        CommandError: As in `upgrade`.
        InvalidInputError: As in `upgrade`. Or the engine's pool has only one connection.
        TypeError: It is neither an AsyncEngine nor an AsyncConnection.
    """
    if isinstance(target, AsyncEngine):
        await greenlet_spawn(run_on_engine, "upgrade", target.sync_engine, to, schema)
    elif isinstance(target, AsyncConnection):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        if target.sync_connection is None:
            raise TypeError("the connection is not started; use: async with engine.begin() as connection")
        await target.run_sync(upgrade, to, schema=schema)
    else:
        raise TypeError(
            f"migrate() takes an AsyncEngine or an AsyncConnection, not {type(target).__name__}; in synchronous code, "
            "call upgrade() with a connection"
        )


def run_on_engine(way: Way, engine: Engine, to: str, schema: str) -> None:
    """Run the revisions, each in a transaction of its own."""
    checked_schema(schema)
    with only_migrator(engine, schema) as connection:
        with connection.begin():
            prepare(connection, schema)
        _run(way, connection, to, schema, in_one_transaction=False)
        connection.commit()  # the version table, if there was no revision to run


def _run_in_transaction(way: Way, connection: Connection, to: str, schema: str) -> None:
    check_can_migrate(connection)
    with turn(connection, schema):
        _run(way, connection, to, schema, in_one_transaction=True)


@contextmanager
def turn(connection: Connection, schema: str) -> Generator[None]:
    """Be the only migrator of a schema until the host application ends its transaction."""
    checked_schema(schema)
    with search_path_pinned(connection):
        wait_until_alone(connection, schema, keep_transaction=True)
        prepare(connection, schema)
        yield


def prepare(connection: Connection, schema: str) -> None:
    """Create the schema. Alembic does not create the schema of its own version table."""
    Change(Operations(MigrationContext.configure(connection)), schema).create_schema()
    rename_old_revision(connection, schema)


def context_options(schema: str) -> dict[str, Any]:
    """Return the options of Alembic's context that say where the version table is."""
    return {"version_table": VERSION_TABLE, "version_table_schema": schema, "script": scripts()}


@contextmanager
def explained() -> Generator[None]:
    """Turn what a revision has raised in the server, to explain why it cannot run, into Alembic's error."""
    try:
        yield
    except DBAPIError as error:
        if sqlstate_of(error) != _RAISED:
            raise
        raise CommandError(str(error.orig).partition("\nCONTEXT:")[0]) from error


def _run(way: Way, connection: Connection, to: str, schema: str, *, in_one_transaction: bool) -> None:
    options = {
        **context_options(schema),
        "fn": _steps(way, full_name(to)),
        "transaction_per_migration": not in_one_transaction,
    }
    context = MigrationContext.configure(connection, opts=options)
    with explained(), context.begin_transaction():
        context.run_migrations(change=Change(Operations(context), schema))


def _steps(way: Way, to: str) -> Callable[[Any, MigrationContext], list[RevisionStep]]:
    """Return what Alembic asks for the steps from the current revision to another one."""

    def steps(current: Any, _context: MigrationContext) -> list[RevisionStep]:  # noqa: ANN401 - Alembic's
        known = scripts()
        try:
            if way == "upgrade":
                found = list(known.iterate_revisions(to, current, implicit_base=True))[::-1]
                return [MigrationStep.upgrade_from_script(known.revision_map, script) for script in found]
            found = list(known.iterate_revisions(current, to, select_for_downgrade=True))
            return [MigrationStep.downgrade_from_script(known.revision_map, script) for script in found]
        except RevisionError as error:
            raise CommandError(f"there is no way to {way} from {current or 'base'} to {to}: {error}") from error

    return steps


def current(connection: Connection, *, schema: str = SCHEMA) -> str | None:
    """Return the revision that the version table names; `None` if there is none.

    It only reads. Two round trips.

    Args:
        connection: A synchronous connection to PostgreSQL.
        schema: The schema that has the tables.
    """
    found = revisions_in(connection, checked_schema(schema))
    return full_name(found[0]) if found else None


def sql(to: str = "head", *, from_revision: str = "base", schema: str = SCHEMA, way: Way = "upgrade") -> str:
    """Return the SQL of an upgrade, for somebody else to run: Flyway, dbmate, an administrator. It connects to nothing.

    Run it with a tool that stops at the first error, such as `psql -v ON_ERROR_STOP=1`. The text has its own BEGIN and
    COMMIT for each revision, and CREATE INDEX CONCURRENTLY between them. It is the same each time.

    Args:
        to: The revision: `head`, or a name like `commandbus_0005`.
        from_revision: The revision of the database. `base`: it has none of the tables.
        schema: The schema that has the tables, or gets them.
        way: `upgrade`, or `downgrade` from `from_revision` to `to`.

    Raises:
        CommandError: Alembic's: there is no such revision.
        InvalidInputError: No schema can have this name.
    """
    checked_schema(schema)
    printed = io.StringIO()
    begun = full_name(from_revision)
    options = {
        **context_options(schema),
        "fn": _steps(way, full_name(to)),
        "transaction_per_migration": True,
        "as_sql": True,
        "literal_binds": True,
        "output_buffer": printed,
        "starting_rev": begun,
    }
    context = MigrationContext.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, opts=options)
    change = Change(Operations(context), schema)
    context.execute("SET search_path = pg_catalog")  # as search_path_pinned does
    if begun == "base":
        change.create_schema()
    else:
        context.execute(in_schema(schema, RENAME))
    with context.begin_transaction():
        context.run_migrations(change=change)
    context.execute("RESET search_path")
    return printed.getvalue()
