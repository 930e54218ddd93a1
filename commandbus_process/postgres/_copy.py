"""Write rows with COPY, the fastest way into a table, if they are probably not stored yet."""

from collections.abc import Sequence
from traceback import clear_frames
from typing import Any, LiteralString
from weakref import WeakKeyDictionary

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Dialect, ExecutionContext, Table, event
from sqlalchemy.engine import Transaction
from sqlalchemy.util import await_only

from commandbus_process.postgres._database import Tables
from commandbus_process.postgres._transaction import psycopg_connection

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
    trigger swallowed rows, or COPY cannot write to the table. INSERT then finds out more.

    Raises:
        sqlalchemy.exc.DBAPIError: Any other error of the server (a time-out, a full disk), as a statement raises it.
    """
    connection = tables.connection
    transaction = connection.get_transaction()
    if transaction is None or _copies.get(transaction, 0) >= _MOST_COPIES:
        return False
    _copies[transaction] = _copies.get(transaction, 0) + 1
    statement = _statement(tables.path_of(table), names)
    copy = _Copy(psycopg_connection(connection), rows)
    try:
        with connection.begin_nested():
            _run(connection, statement, copy)
    except _NotAllCopiedError:
        return False
    except Exception:
        # Not the error's class decides: a `handle_error` listener may have put another one in its place.
        if copy.sqlstate in _NOT_WITH_COPY or copy.sqlstate.startswith(_INTEGRITY_CONSTRAINT_VIOLATION):
            return False
        raise
    return True


class _NotAllCopiedError(Exception):
    """A trigger swallowed rows."""


def _statement(path: Sequence[str], names: Sequence[str]) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*path), sql.SQL(", ").join(map(sql.Identifier, names))
    )


def _run(connection: Connection, statement: sql.Composed, copy: "_Copy") -> None:
    """Run COPY as SQLAlchemy runs a statement: with its events, its log, its errors, and its care after a cancellation.

    SQLAlchemy has no COPY, but a listener for `do_execute` may run a statement in its place. Everything around that is
    then SQLAlchemy's own: a listener can rewrite the statement, and it is logged. The statement has no parameters, so
    that neither a listener nor a log is given a row.
    """
    _listen(connection.dialect)
    try:
        connection.exec_driver_sql(statement.as_string(), execution_options={_OPTION: copy})
    except BaseException as error:
        # A frame of SQLAlchemy refers to the error, and would keep the rows until the garbage collector runs.
        clear_frames(error.__traceback__)
        raise
    if not copy.has_written_all:
        raise _NotAllCopiedError


_OPTION = "commandbus_process_copy"


class _Copy:
    """One COPY. It goes to the listener as an option of the statement. Its `repr` shows no row.

    Attributes:
        has_written_all: Whether the server has taken all rows. A trigger may swallow some.
        sqlstate: The server's error code, or an empty text.
    """

    __slots__ = ("_driver", "_rows", "has_written_all", "sqlstate")

    def __init__(self, driver: "psycopg.AsyncConnection[Any]", rows: Sequence[Sequence[Any]]) -> None:
        self._driver = driver
        self._rows = rows
        self.has_written_all = False
        self.sqlstate = ""

    async def run(self, statement: LiteralString) -> None:  # `_statement` has quoted all names
        try:
            async with self._driver.cursor() as cursor:
                async with cursor.copy(statement) as copy:
                    for row in self._rows:
                        await copy.write_row(row)
                self.has_written_all = cursor.rowcount == len(self._rows)
        except psycopg.Error as error:
            self.sqlstate = error.sqlstate or ""
            _leave_out_the_row(error)
            raise


def _listen(dialect: Dialect) -> None:
    """Let this module run the COPYs of an engine, from its first COPY on.

    The listener stays: to remove one while another task runs a statement is not safe. For any other statement of the
    engine it is one look into a dictionary.
    """
    if not event.contains(dialect, "do_execute", _execute_copy):
        event.listen(dialect, "do_execute", _execute_copy)
        event.listen(dialect, "do_execute_no_params", _execute_copy_without_parameters)


def _execute_copy(_cursor: object, statement: str, _parameters: object, context: ExecutionContext) -> bool:
    """Run the statement if it is a COPY of this module, and return whether it was."""
    copy = context.execution_options.get(_OPTION)
    if copy is None:
        return False
    await_only(copy.run(statement))
    return True


def _execute_copy_without_parameters(cursor: object, statement: str, context: ExecutionContext) -> bool:
    """Do the same on an engine or a connection with the option `no_parameters`."""
    return _execute_copy(cursor, statement, (), context)


def _leave_out_the_row(error: psycopg.Error) -> None:
    """Keep the server's CONTEXT out of the message. For COPY, and for no other statement, it may quote the row."""
    diagnostic = error.diag
    if diagnostic.message_primary is not None:
        parts = (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)
        error.args = ("\n".join(part for part in parts if part),)
