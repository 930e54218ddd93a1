"""COPY, the quickest way into a table, for rows that are probably not there yet."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Table
from sqlalchemy.util import await_only


def copy_rows(connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    """Write the rows, and return whether they were written; where anything is in the way of one, none is.

    COPY knows no ON CONFLICT: it fails, and so it runs inside a savepoint. What was wrong is for another statement to
    find out. SQLAlchemy has no COPY, and so its events of a statement do not tell of it.
    """
    driver = cast("psycopg.AsyncConnection", connection.connection.driver_connection)
    try:
        with connection.begin_nested():
            try:
                await_only(_copy(driver, table, names, rows))
            except asyncio.CancelledError:
                # In the middle of a COPY, the connection is not fit for use any more. SQLAlchemy does the same for the
                # statements that it knows of.
                connection.invalidate()
                raise
    except (psycopg.Error, _NotAllCopiedError):
        return False
    return True


class _NotAllCopiedError(Exception):
    """A trigger swallowed rows."""


async def _copy(
    driver: psycopg.AsyncConnection, table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*table.fullname.split(".")), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    async with driver.cursor() as cursor:
        async with cursor.copy(statement) as copy:
            for row in rows:
                await copy.write_row(row)
        if cursor.rowcount != len(rows):
            raise _NotAllCopiedError
