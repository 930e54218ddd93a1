"""Whether the database is at a revision that this version of the library works with: for start-up and health checks."""

import re
from typing import NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process._schema_name import SchemaName, checked_schema
from commandbus_process.errors import SchemaError, SchemaTooNewError, SchemaTooOldError
from commandbus_process.migrations._connections import in_schema
from commandbus_process.migrations._history import KNOWN, PREFIX, full_name
from commandbus_process.tables import REVISION, SCHEMA, VERSION_TABLE


class SchemaRevision(NamedTuple):
    """The revision that the database is at, which works with this version of the library.

    Attributes:
        found: The database's revision.
        wanted: The revision that this version of the library needs.
        is_newer: Whether the database is ahead: it was upgraded for a newer version, which is compatible.
    """

    found: str
    wanted: str
    is_newer: bool


async def check_schema(
    target: AsyncEngine | AsyncConnection, *, schema: str = SCHEMA, version_table: str | None = None
) -> SchemaRevision:
    """Check that the database is at a revision that this version of the library works with.

    Call it when an application starts, and in its health check. It only reads, and takes no lock. Two round trips. The
    role needs the right to read the version table; every role of `commandbus_process.grants` has it. It compares names
    of revisions, and does not look at the tables: `python -m commandbus_process.migrations check` does.

    Args:
        target: An engine, or your connection.
        schema: The schema that has the tables.
        version_table: If the revisions are a branch of your own Alembic: your version table, as `alembic_version` or
            `public.alembic_version`.

    Raises:
        SchemaTooOldError: The database is at an older revision, or has no version table. The message says what to run.
        SchemaTooNewError: The database is at a newer revision, and that one does not work with this version any more.
        SchemaError: The role may not read the version table.
        TypeError: It is neither an AsyncEngine nor an AsyncConnection.
    """
    checked_schema(schema)
    if isinstance(target, AsyncEngine):
        async with target.connect() as connection:
            return await connection.run_sync(judged, schema, version_table)
    if isinstance(target, AsyncConnection):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        return await target.run_sync(judged, schema, version_table)
    raise TypeError(f"check_schema() takes an AsyncEngine or an AsyncConnection, not {type(target).__name__}")


def judged(connection: Connection, schema: str, version_table: str | None = None) -> SchemaRevision:
    """Return the database's revision, if this version of the library works with it. Raises what `check_schema` does."""
    found, works_with = _read(connection, schema, version_table)
    if found is None or (found in KNOWN and found != REVISION):
        raise SchemaTooOldError(found, REVISION, schema=schema)
    if found == REVISION:
        return SchemaRevision(found, REVISION, is_newer=False)
    since = re.fullmatch(r"works with code since (\w+)", works_with or "")
    if since is None or since[1] not in KNOWN:
        raise SchemaTooNewError(found, REVISION, schema=schema)
    return SchemaRevision(found, REVISION, is_newer=True)


# Not with to_regclass: it fails if the role may not use the schema, and that would abort the caller's transaction.
_FIND = text("""
SELECT (
    SELECT pg_catalog.has_schema_privilege(namespace.oid, 'USAGE')
        AND pg_catalog.has_table_privilege(class.oid, 'SELECT')
    FROM pg_catalog.pg_class AS class
    JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE namespace.nspname = :of_version AND class.relname = :version_table
) AS can_read, (
    SELECT pg_catalog.col_description(class.oid, attribute.attnum) FROM pg_catalog.pg_class AS class
    JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    JOIN pg_catalog.pg_attribute AS attribute ON attribute.attrelid = class.oid
    WHERE namespace.nspname = :schema AND class.relname = 'process' AND attribute.attname = 'version'
) AS works_with
""")


def _read(connection: Connection, schema: str, version_table: str | None) -> tuple[str | None, str | None]:
    """Return the revision, and what the database says about the code that works with it."""
    of_version, table = schema, VERSION_TABLE
    if version_table is not None:
        of_version, _, table = version_table.rpartition(".")
        of_version = of_version or str(connection.dialect.default_schema_name)
    names = {"of_version": of_version, "version_table": table, "schema": schema}
    can_read, works_with = connection.execute(_FIND, names).one()
    if can_read is None:
        return None, works_with
    if not can_read:
        raise SchemaError(
            None, REVISION, schema, "the role may not read the version table; run: python -m commandbus_process.grants"
        )
    versions = in_schema(of_version, f"SELECT version_num FROM {{schema}}.{SchemaName(table).identifier}")  # noqa: S608
    rows = [str(each) for each in connection.scalars(versions)]
    ours = [full_name(each) for each in rows if version_table is None or each.startswith(PREFIX)]
    return max(ours, default=None), works_with
