"""The revisions: where they are, their names, and Alembic's configuration for them."""

from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from commandbus_process._schema_name import checked_schema
from commandbus_process.migrations._connections import in_schema
from commandbus_process.tables import REVISION, SCHEMA, VERSION_TABLE

_PACKAGE = Path(__file__).parents[1]

PREFIX = "commandbus_"
"""Every revision's name begins with it, so that it is no other's if a host runs them as a branch of its own."""
KNOWN = tuple(f"{PREFIX}{number:04}" for number in range(1, int(REVISION.removeprefix(PREFIX)) + 1))
"""All revisions, from the oldest to the newest."""
_OLD_NAMES = tuple(name.removeprefix(PREFIX) for name in KNOWN[:5])  # what they were called before


def location() -> Path:
    """Return the folder of the revisions. pyproject.toml puts it into the wheel. In a checkout it is `alembic/`."""
    in_wheel = _PACKAGE / "_migrations"
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / "alembic"


def alembic_config(url: str | None = None, *, schema: str = SCHEMA) -> Config:
    """Return the Alembic configuration for this library's migrations, for `alembic.command`.

    It works for an installed wheel and for a checkout, and reads no `alembic.ini`. To migrate inside your own
    transaction, call `upgrade` instead.

    Args:
        url: The database, as `postgresql://…`. Without it, `DATABASE_URL` is read when a command runs.
        schema: The schema that has the tables, or gets them.
    """
    config = Config()
    config.set_main_option("script_location", str(location()).replace("%", "%%"))
    config.attributes["url"] = url
    config.attributes["schema"] = checked_schema(schema)
    return config


@cache
def scripts() -> ScriptDirectory:
    """Return the revisions, loaded once."""
    return ScriptDirectory.from_config(alembic_config())


def full_name(revision: str) -> str:
    """Return the name of a revision that may be given by its number, or by its old name: `3`, `0003`."""
    return f"{PREFIX}{int(revision):04}" if revision.isdecimal() else revision


RENAME = (
    f"UPDATE {{schema}}.{VERSION_TABLE} SET version_num = '{PREFIX}' || version_num "  # noqa: S608 - our names
    f"WHERE version_num = ANY ('{{{','.join(_OLD_NAMES)}}}')"
)
"""Gives an old name of a revision in the version table its new form."""


def rename_old_revision(connection: Connection, schema: str) -> None:
    """Write the revision's name in its new form, if the version table has the old one."""
    if set(revisions_in(connection, schema)) & set(_OLD_NAMES):
        connection.execute(in_schema(schema, RENAME))


def revisions_in(connection: Connection, schema: str) -> list[str]:
    """Return what stands in the version table. It has one row, or none; there may be no such table."""
    path = f"pg_catalog.to_regclass(pg_catalog.format('%I.{VERSION_TABLE}', {{name}}))"
    if connection.scalar(in_schema(schema, f"SELECT {path} IS NULL")):
        return []
    found = connection.scalars(in_schema(schema, f"SELECT version_num FROM {{schema}}.{VERSION_TABLE}"))  # noqa: S608
    return list(found)
