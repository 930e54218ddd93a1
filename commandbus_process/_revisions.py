"""What the revisions in `alembic/versions` do on a database that is in use: lock tables, and build indexes."""

import random
import time
from collections.abc import Mapping

from alembic import op
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

# Everybody who wants the table waits behind a LOCK that waits. So it waits only for a moment, lets the others pass, and
# tries again. A LOCK of two tables can wait for each of them.
_LONGEST_WAIT = "400ms"
_TRIES = 300
_PAUSE = 1.0  # seconds, on average
_LOCK_NOT_AVAILABLE = "55P03"


def lock_tables(*names: str) -> None:
    """Lock tables (ACCESS EXCLUSIVE) until the revision commits. Nobody waits for longer than a second meanwhile.

    Raises:
        CommandError: Somebody held one of the tables for minutes. Nothing of this revision was done.
    """
    tables = ", ".join(f"commandbus.{name}" for name in names)
    lock = f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"
    if op.get_context().as_sql:
        op.execute(f"SET LOCAL lock_timeout = '{_LONGEST_WAIT}'")
        op.execute(lock)
        return
    connection = op.get_bind()
    before = connection.scalar(text("SHOW lock_timeout"))
    for _ in range(_TRIES):
        _set_lock_timeout(connection, _LONGEST_WAIT)
        is_locked = _try(connection, lock)
        _set_lock_timeout(connection, before)  # the rest of the transaction may be the host application's
        if is_locked:
            return
        time.sleep(random.uniform(0.5, 1.5) * _PAUSE)  # noqa: S311 - no secret
    raise CommandError(
        f"could not lock {tables} in {_TRIES} tries: a transaction uses them. Nothing of this revision was done. "
        "End the transaction, or upgrade at another time"
    )


def _set_lock_timeout(connection: Connection, value: str | None) -> None:
    connection.execute(text("SELECT pg_catalog.set_config('lock_timeout', :value, true)"), {"value": value})


def _try(connection: Connection, lock: str) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(text(lock))
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


def remove_guards() -> None:
    """Drop the triggers of `commandbus_process.guards`, which may use the columns that a downgrade drops."""
    for function in ("guard_process", "guard_process_audit"):
        op.execute(f"DROP FUNCTION IF EXISTS commandbus.{function}() CASCADE")


def create_indexes(table: str, definitions: Mapping[str, str]) -> None:
    """Build indexes, and let everybody read and write the table meanwhile.

    That is not possible within a transaction. So this commits what the revision did before, and that must be what can
    be done again: if the upgrade is interrupted here, the next one begins the revision anew. An index that is there
    already is kept. One that was not finished is built again.

    In the transaction of a host application, and in an empty table, the indexes are built at once.

    Args:
        table: The table.
        definitions: For each index, what follows its table in CREATE INDEX.

    Raises:
        CommandError: There is an index of this name with another definition.
    """
    context = op.get_context()
    if context.as_sql:
        with context.autocommit_block():
            for name, definition in definitions.items():
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS commandbus.{name}")  # if this was interrupted before
                op.execute(f"CREATE INDEX CONCURRENTLY {name} ON commandbus.{table} USING btree {definition}")
    elif context.opts["transaction_per_migration"] and _has_rows(op.get_bind(), table):
        with context.autocommit_block():
            for name, definition in definitions.items():
                _create_concurrently(op.get_bind(), name, table, definition)
    else:
        for name, definition in definitions.items():
            if _is_missing(op.get_bind(), name, table, definition):
                op.execute(f"DROP INDEX IF EXISTS commandbus.{name}")  # an upgrade was interrupted while it built it
                op.execute(f"CREATE INDEX {name} ON commandbus.{table} USING btree {definition}")


def _has_rows(connection: Connection, table: str) -> bool:
    return connection.scalar(text(f"SELECT EXISTS (SELECT FROM commandbus.{table})")) is True  # noqa: S608 - our name


def _create_concurrently(connection: Connection, name: str, table: str, definition: str) -> None:
    if _is_missing(connection, name, table, definition):
        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS commandbus.{name}"))
        connection.execute(text(f"CREATE INDEX CONCURRENTLY {name} ON commandbus.{table} USING btree {definition}"))


_FIND_INDEX = text(
    "SELECT indisvalid, pg_catalog.pg_get_indexdef(indexrelid) FROM pg_catalog.pg_index "
    "WHERE indexrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(:name)::oid"
)


def _is_missing(connection: Connection, name: str, table: str, definition: str) -> bool:
    """Whether an index must be built: it is not there, or somebody was interrupted while building it."""
    found = connection.execute(_FIND_INDEX, {"name": f"commandbus.{name}"}).first()
    if found is None or not found[0]:
        return True
    wanted = f"CREATE INDEX {name} ON commandbus.{table} USING btree {definition}"
    if found[1] != wanted:
        raise CommandError(f"commandbus.{name} is not the index that is needed; rename it, then upgrade again")
    return False
