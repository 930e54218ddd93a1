"""Compare the tables in the database with those that the library declares, as `alembic check` does."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, MetaData
from sqlalchemy.exc import SAWarning

from commandbus_process.migrations._connections import reflecting, search_path_pinned
from commandbus_process.migrations._running import context_options
from commandbus_process.tables import SCHEMA, metadata

_CHECKS = {
    constraint.name
    for table in metadata.tables.values()
    for constraint in table.constraints
    if isinstance(constraint, CheckConstraint)
}


def declared(schema: str) -> MetaData:
    """Return the tables as they are declared, in a schema."""
    if schema == SCHEMA:
        return metadata
    copies = MetaData(schema=schema)
    for table in metadata.sorted_tables:
        table.to_metadata(copies, schema=schema)
    return copies


def options(schema: str) -> dict[str, Any]:
    """Return the options with which Alembic compares the tables, and no others.

    Other tables in the schema belong to the rest of the command bus. Comments are an administrator's.
    """
    wanted = declared(schema)
    names = {table.name for table in wanted.tables.values()}

    def include_name(name: str | None, kind: str, parents: Any) -> bool:  # noqa: ANN401 - Alembic's mapping
        if kind == "schema":
            return name == schema
        if kind == "table":
            return parents["schema_name"] == schema and name in names
        if kind == "check_constraint":
            return name in _CHECKS  # tables that were created by hand may have others
        return True

    return {
        **context_options(schema),
        "target_metadata": wanted,
        "include_schemas": True,
        "include_name": include_name,
        # Without the second plugin, Alembic does not compare CHECK constraints. It compares them by name.
        "autogenerate_plugins": [
            "alembic.autogenerate.*",
            "~alembic.autogenerate.comments",
            "alembic.ext.checkconstraint_byname",
        ],
    }


@contextmanager
def comparing(connection: Connection) -> Generator[None]:
    """Let Alembic read the tables."""
    with reflecting(connection), warnings.catch_warnings():
        # SQLAlchemy and Alembic warn about each CHECK that is NOT VALID.
        warnings.filterwarnings("ignore", "Can't validate argument '(dialect_options|not_valid)'", SAWarning)
        yield


def differences(connection: Connection, *, schema: str = SCHEMA) -> list[str]:
    """Return how the tables differ from those that this version declares, one sentence each. It only reads.

    Args:
        connection: A synchronous connection to PostgreSQL, with a transaction.
        schema: The schema that has the tables.
    """
    wanted = options(schema)
    with search_path_pinned(connection), comparing(connection):
        context = MigrationContext.configure(connection, opts=wanted)
        return [_sentence(each) for each in _flat(compare_metadata(context, wanted["target_metadata"]))]


def _flat(found: Any) -> Generator[tuple[Any, ...]]:  # noqa: ANN401 - Alembic's: tuples, and lists of them
    for each in found:
        if isinstance(each, list):
            yield from _flat(each)
        else:
            yield each


def _sentence(difference: tuple[Any, ...]) -> str:
    what, *facts = difference
    return " ".join([what.replace("_", " "), *(str(getattr(fact, "name", fact)) for fact in facts if fact is not None)])
