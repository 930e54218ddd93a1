"""Write rows with COPY, the fastest way into a table, if they are probably not stored yet."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Table
from sqlalchemy.engine import Transaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from commandbus_process.postgres._database import Tables
from commandbus_process.postgres._transaction import get_sqlstate, psycopg_connection

# Each COPY runs in a savepoint. PostgreSQL keeps up to 64 writing savepoints of a transaction in shared memory. If
# there are more, every other session has to look them up in files. A limit of 48 leaves some savepoints to the caller.
_MOST_COPIES = 48
# For each transaction: how many COPYs it has run, in all calls together.
_copies: WeakKeyDictionary[Transaction, int] = WeakKeyDictionary()

_INTEGRITY_CONSTRAINT_VIOLATION = "23"  # a class of SQLSTATEs: they all begin with it
# COPY cannot write under row-level security or to a view. INSERT can.
_NOT_WITH_COPY = frozenset({"0A000", "42809"})


def copy_rows(tables: Tables, table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    """Write all rows or none, and return whether they were written. If not, use INSERT.

    COPY has no ON CONFLICT and fails on a conflict, so it runs in a savepoint. `False` means: there is a conflict, a
    trigger swallowed rows, or COPY cannot write to the table. INSERT then finds out more. SQLAlchemy does not know
    COPY, so its events do not report it.

    Raises:
        sqlalchemy.exc.DBAPIError: Any other error of the server (a time-out, a full disk), as a statement raises it.
    """
    connection = tables.connection
    transaction = connection.get_transaction()
    if transaction is None or _copies.get(transaction, 0) >= _MOST_COPIES:
        return False
    _copies[transaction] = _copies.get(transaction, 0) + 1
    statement = _statement(tables.path_of(table), names)
    try:
        with connection.begin_nested():
            _run(connection, statement, rows)
    except _NotAllCopiedError:
        return False
    except DBAPIError as error:
        sqlstate = get_sqlstate(error) or ""
        if sqlstate in _NOT_WITH_COPY or sqlstate.startswith(_INTEGRITY_CONSTRAINT_VIOLATION):
            return False
        raise
    return True


class _NotAllCopiedError(Exception):
    """A trigger swallowed rows."""


def _statement(path: Sequence[str], names: Sequence[str]) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*path), sql.SQL(", ").join(map(sql.Identifier, names))
    )


def _run(connection: Connection, statement: sql.Composed, rows: Sequence[Sequence[Any]]) -> None:
    """Run COPY. Raise the errors that SQLAlchemy would raise for a statement."""
    adapted: Any = connection.connection.dbapi_connection
    driver = psycopg_connection(connection)
    try:
        await_only(_copy(driver, statement, rows))
    except psycopg.Error as error:
        _leave_out_the_row(error)
        is_lost = connection.dialect.is_disconnect(cast("Any", error), adapted, None)
        if is_lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement.as_string(),
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=is_lost,
            dialect=connection.dialect,
        ) from error
    except asyncio.CancelledError:
        # A connection in the middle of a COPY cannot be used any more. SQLAlchemy does the same for a statement.
        connection.invalidate()
        raise


def _leave_out_the_row(error: psycopg.Error) -> None:
    """Keep the server's CONTEXT out of the message. For COPY, and for no other statement, it may quote the row."""
    diagnostic = error.diag
    if diagnostic.message_primary is not None:
        parts = (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)
        error.args = ("\n".join(part for part in parts if part),)


async def _copy(driver: "psycopg.AsyncConnection[Any]", statement: sql.Composed, rows: Sequence[Sequence[Any]]) -> None:
    async with driver.cursor() as cursor:
        async with cursor.copy(statement) as copy:
            for row in rows:
                await copy.write_row(row)
        if cursor.rowcount != len(rows):
            raise _NotAllCopiedError
