"""What the revisions in `alembic/versions` do to a schema, also while it is in use: lock tables, and build indexes."""

import random
from collections.abc import Mapping
from typing import Any, cast

import alembic.op
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import quoted_name
from sqlalchemy.sql.elements import TextClause

from commandbus_process._schema_name import checked_schema
from commandbus_process.migrations._connections import in_schema, pause, sqlstate_of
from commandbus_process.tables import SCHEMA

# Everybody who wants the table waits behind a LOCK that waits. So it waits only for a moment, lets the others pass, and
# tries again. A LOCK of two tables can wait for each of them.
_LONGEST_WAIT = "400ms"
_TRIES = 300
_PAUSE = 1.0  # seconds, on average
_LOCK_NOT_AVAILABLE = "55P03"

SCHEMA_OPTION = "commandbus_process_schema"
"""The option of a host's `alembic.ini` that names the schema, if the host runs the revisions as a branch of its own."""


class Change:
    """The change of one schema by one revision.

    A revision uses this instead of `alembic.op`. That is one object for the whole program, and a host that calls
    `migrations.upgrade` within a revision of its own needs it itself.

    SQL in its methods says `{schema}` for the schema, and `{name}` for its name as a text.

    Args:
        operations: Alembic's operations.
        schema: The schema that has the tables.

    Attributes:
        op: Alembic's operations.
        schema: The schema's name, as the operations want it.
    """

    def __init__(self, operations: Operations, schema: str) -> None:
        self.op = operations
        # Alembic would take a name with a dot for two names.
        self.schema = schema if schema == SCHEMA else quoted_name(checked_schema(schema), quote=True)

    @classmethod
    def of(cls, change: "Change | None") -> "Change":
        """Return the change itself or, if the revision was called by a host's Alembic, one with its operations."""
        if change is not None:
            return change
        config = alembic.op.get_context().config
        schema = None if config is None else config.get_main_option(SCHEMA_OPTION)
        return cls(cast("Operations", alembic.op), schema or SCHEMA)

    def sql(self, template: str) -> TextClause:
        """Return SQL about the schema. No part of it is a parameter."""
        return in_schema(self.schema, template)

    def execute(self, template: str) -> None:
        """Run SQL, or print it."""
        self.op.execute(self.sql(template))

    def create_schema(self) -> None:
        """Create the schema, unless it is there.

        Look first, because CREATE SCHEMA IF NOT EXISTS needs the right to create schemas even if the schema exists.
        """
        exists = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {name})"
        if self._prints or not self._bind.scalar(self.sql(exists)):
            self.execute("CREATE SCHEMA IF NOT EXISTS {schema}")

    def lock_tables(self, *names: str) -> None:
        """Lock tables (ACCESS EXCLUSIVE) until the revision commits. Nobody waits for longer than a second meanwhile.

        Raises:
            CommandError: Somebody held one of the tables for minutes. Nothing of this revision was done.
        """
        lock = f"LOCK TABLE {', '.join(f'{{schema}}.{name}' for name in names)} IN ACCESS EXCLUSIVE MODE"
        if self._prints:
            self.execute(f"SET LOCAL lock_timeout = '{_LONGEST_WAIT}'")
            self.execute(lock)
            return
        connection = self._bind
        before = connection.scalar(text("SHOW lock_timeout"))
        for _ in range(_TRIES):
            _set_lock_timeout(connection, _LONGEST_WAIT)
            is_locked = _try(connection, self.sql(lock))
            _set_lock_timeout(connection, before)  # the rest of the transaction may be the host application's
            if is_locked:
                return
            pause(connection, random.uniform(0.5, 1.5) * _PAUSE)  # noqa: S311 - no secret
        raise CommandError(
            f"could not lock {' and '.join(names)} in {_TRIES} tries: a transaction uses them. Nothing of this "
            "revision was done. End the transaction, or upgrade at another time"
        )

    def remove_guards(self) -> None:
        """Drop the triggers of `commandbus_process.guards`, which may use the columns that a downgrade drops."""
        for function in ("guard_process", "guard_process_audit"):
            self.execute(f"DROP FUNCTION IF EXISTS {{schema}}.{function}() CASCADE")

    def create_indexes(self, table: str, definitions: Mapping[str, str]) -> None:
        """Build indexes, and let everybody read and write the table meanwhile.

        That is not possible within a transaction. So this commits what the revision did before, and that must be what
        can be done again: if the upgrade is interrupted here, the next one begins the revision anew. An index that is
        there already is kept. One that was not finished is built again.

        In the transaction of a host application, and in an empty table, the indexes are built at once.

        Args:
            table: The table.
            definitions: For each index, what follows its table in CREATE INDEX.

        Raises:
            CommandError: There is an index of this name with another definition.
        """
        context = self.op.get_context()
        if context.as_sql:
            with context.autocommit_block():
                for name, definition in definitions.items():
                    self.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {{schema}}.{name}")  # if it was interrupted before
                    self.execute(f"CREATE INDEX CONCURRENTLY {name} ON {{schema}}.{table} USING btree {definition}")
        elif context.opts["transaction_per_migration"] and self._has_rows(table):
            with context.autocommit_block():
                for name, definition in definitions.items():
                    self._create_if_missing("INDEX CONCURRENTLY", name, table, definition)
        else:
            for name, definition in definitions.items():
                self._create_if_missing("INDEX", name, table, definition)

    def works_with_code_since(self, revision: str) -> None:
        """Write down which code works with the tables from here on: that which needs this revision, or a later one.

        A library that does not know the database's revision yet reads it, in `check_schema`. It is a comment on a
        column that is the library's own, so that it is there by every route.
        """
        self.execute(f"COMMENT ON COLUMN {{schema}}.process.version IS 'works with code since {revision}'")

    @property
    def _prints(self) -> bool:
        return self.op.get_context().as_sql

    @property
    def _bind(self) -> Connection:
        return self.op.get_bind()

    def _has_rows(self, table: str) -> bool:
        return self._bind.scalar(self.sql(f"SELECT EXISTS (SELECT FROM {{schema}}.{table})")) is True  # noqa: S608 - our name

    def _create_if_missing(self, kind: str, name: str, table: str, definition: str) -> None:
        if self._is_missing(name, table, definition):
            # An upgrade was interrupted while it built this one, if it is there.
            self._bind.execute(self.sql(f"DROP {kind} IF EXISTS {{schema}}.{name}"))
            self._bind.execute(self.sql(f"CREATE {kind} {name} ON {{schema}}.{table} USING btree {definition}"))

    def _is_missing(self, name: str, table: str, definition: str) -> bool:
        """Whether an index must be built: it is not there, or somebody was interrupted while building it."""
        found = self._bind.execute(self.sql(_FIND_INDEX.format(index=name, table=table, definition=definition))).first()
        if found is None or not found.indisvalid:
            return True
        if not found.fits:
            raise CommandError(f"{self.schema}.{name} is not the index that is needed; rename it, then upgrade again")
        return False


# The server writes the schema's name into the definition, quoted if that is needed: so `format` does the same.
_FIND_INDEX = """
SELECT indisvalid,
       pg_catalog.pg_get_indexdef(indexrelid) OPERATOR(pg_catalog.=) pg_catalog.format(
           'CREATE INDEX {index} ON %I.{table} USING btree {definition}', {{name}}) AS fits
FROM pg_catalog.pg_index
WHERE indexrelid OPERATOR(pg_catalog.=)
    pg_catalog.to_regclass(pg_catalog.format('%I.{index}', {{name}}))::pg_catalog.oid
"""


def _set_lock_timeout(connection: Connection, value: Any) -> None:  # noqa: ANN401 - what the server has said
    connection.execute(text("SELECT pg_catalog.set_config('lock_timeout', :value, true)"), {"value": value})


def _try(connection: Connection, lock: TextClause) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(lock)
    except DBAPIError as error:
        if sqlstate_of(error) != _LOCK_NOT_AVAILABLE:
            raise
        return False
    return True
