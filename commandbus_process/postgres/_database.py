"""Where the tables are: an engine, and the schema. Every statement of the library is executed here."""

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Engine, Executable, Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from commandbus_process._schema_name import checked_schema
from commandbus_process.tables import SCHEMA


class Database:
    """An engine, and the schema that has the tables.

    The statements name the tables in the schema `commandbus`. If another one was chosen, SQLAlchemy puts its name into
    each statement. That is an option of the statement (`schema_translate_map`). The connection's options do not change.

    Args:
        engine: The engine from which a method without `conn` borrows a connection.
        schema: The schema. `None`: the one that the engine or the connection has in its `schema_translate_map`. Without
            a map, `commandbus`.

    Attributes:
        engine: The engine.
        options: The execution options of each statement.
    """

    def __init__(self, engine: AsyncEngine, schema: str | None) -> None:
        check_engine(engine)
        self.engine = engine
        self.options: Mapping[str, Any] = (
            {} if schema is None else {"schema_translate_map": {SCHEMA: checked_schema(schema)}}
        )
        self._schema = schema

    def on(self, connection: Connection) -> "Tables":
        """Return the tables as a connection reaches them."""
        return Tables(connection, self._schema, self.options)

    def on_async(self, connection: AsyncConnection) -> "Tables":
        """Return the tables as a started connection reaches them, for what runs in its greenlet."""
        return self.on(cast("Connection", connection.sync_connection))


class Tables:
    """The tables in their schema, over one connection.

    Attributes:
        connection: The connection.
    """

    __slots__ = ("_options", "_schema", "connection")

    def __init__(self, connection: Connection, schema: str | None, options: Mapping[str, Any]) -> None:
        self.connection = connection
        self._schema = schema
        self._options = options

    def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Execute a statement."""
        return self.connection.execute(statement, parameters, execution_options=self._options)

    def path_of(self, table: Table) -> tuple[str, ...]:
        """Return the name of a table, for a statement that SQLAlchemy does not write: with its schema, unquoted."""
        schema = self.connection.schema_for_object(table) if self._schema is None else self._schema
        return (table.name,) if schema is None else (schema, table.name)


def check_engine(engine: object) -> None:
    """Reject an engine that this package cannot use. The message names what to pass instead. It quotes no URL.

    Raises:
        TypeError: It is not an AsyncEngine, or its driver is not psycopg.
    """
    if not isinstance(engine, AsyncEngine):
        if isinstance(engine, Engine):
            hint = "create_async_engine(...) takes the same arguments as create_engine(...)"
        elif isinstance(engine, AsyncConnection):
            hint = "pass its engine, conn.engine, here, and the connection to the methods, as conn"
        elif isinstance(engine, AsyncSession):
            hint = (
                "pass the engine that the session was made with, and await session.connection() to the methods, as conn"
            )
        else:
            hint = "make one with create_async_engine(url)"
        raise TypeError(f"engine must be an AsyncEngine, not {type(engine).__name__}; {hint}")
    _check_driver("engine", engine)


def check_connection(conn: AsyncConnection | None) -> None:
    """Reject a connection that this package cannot use. The message names what to pass instead.

    Raises:
        TypeError: It is not an AsyncConnection (for example a session), or its driver is not psycopg.
    """
    if conn is None:
        return
    if not isinstance(conn, AsyncConnection):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(
            f"conn must be an AsyncConnection, not {type(conn).__name__}; an AsyncSession has one: "
            "await session.connection()"
        )
    _check_driver("conn", conn.engine)


def _check_driver(name: str, engine: AsyncEngine) -> None:
    dialect = engine.dialect
    if dialect.driver != "psycopg":
        raise TypeError(
            f"{name} must have the driver psycopg, not {dialect.driver} ({dialect.name}); "
            'make the engine with create_async_engine("postgresql+psycopg://...")'
        )
