"""A side's database: made, loaded and read without the side, through a connection that no measurement uses."""

from collections.abc import Iterable, Sequence
from typing import Literal

import psycopg
from alembic.command import upgrade
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import URL

from benchmarks.data import PROCESS_COLUMNS, STEP_COLUMNS, Columns, Rows
from commandbus_process.migrations import alembic_config


def driver_url(url: URL) -> str:
    """Return the URL as psycopg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def copy_statement(table: str, columns: Sequence[str], form: Literal["text", "binary"]) -> sql.Composed:
    """Return the COPY into a table."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT {})")
    return statement.format(sql.Identifier("commandbus", table), names, sql.SQL(form))


class Database:
    """One database on the benchmark's server."""

    def __init__(self, server: URL, name: str, revision: str) -> None:
        """Make the database, and bring it to an Alembic revision."""
        self.url = server.set(database=name)
        with psycopg.connect(driver_url(server), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        upgrade(alembic_config(driver_url(self.url)), revision)
        self._connection = psycopg.connect(driver_url(self.url), autocommit=True)

    def execute(self, statement: str) -> None:
        self._connection.execute(statement.encode())

    def load(self, rows: Rows) -> None:
        """Insert rows, the fast way."""
        with self._connection.transaction():
            self._copy("process", PROCESS_COLUMNS, rows[0])
            self._copy("process_audit", STEP_COLUMNS, rows[1])

    def rows(self, domain: str) -> Rows:
        """Return the processes and the steps of a domain, in the columns that all sides have."""
        return (
            self._select("process", PROCESS_COLUMNS, "process_id", domain),
            self._select("process_audit", STEP_COLUMNS, "process_id, sent_at", domain),
        )

    def remove(self, domain: str) -> None:
        """Delete the rows of a domain."""
        for table in (b"process_audit", b"process"):
            self._connection.execute(b"DELETE FROM commandbus." + table + b" WHERE domain = %s", (domain,))

    def close(self) -> None:
        self._connection.close()

    def _copy(self, table: str, columns: Sequence[str], rows: Iterable[Columns]) -> None:
        with self._connection.cursor() as cursor, cursor.copy(copy_statement(table, columns, "text")) as copy:
            for row in rows:
                copy.write_row([Jsonb(row[name]) if isinstance(row[name], dict) else row[name] for name in columns])

    def _select(self, table: str, columns: Sequence[str], order: str, domain: str) -> list[Columns]:
        statement = f"SELECT {', '.join(columns)} FROM commandbus.{table} WHERE domain = %s ORDER BY {order}"  # noqa: S608 - names of ours
        return self._connection.cursor(row_factory=dict_row).execute(statement.encode(), (domain,)).fetchall()
