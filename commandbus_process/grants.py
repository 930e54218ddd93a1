"""Print the GRANT statements for a role: the rights that it needs for its purpose, and no more.

    python -m commandbus_process.grants ROLE | psql -v ON_ERROR_STOP=1 -1 "$DATABASE_URL"
    python -m commandbus_process.grants ROLE --for purger | psql -v ON_ERROR_STOP=1 -1 "$DATABASE_URL"

Use a migrator, which owns the schema `commandbus` and runs Alembic, and a role for each purpose:

- `application`, the default: uses the repository. It can read both tables, insert rows, and update the columns that the
  repository updates. It cannot delete rows, change definitions or change what was sent. It can read Alembic's version
  table, and not write it.
- `reader`: uses the queries. It can read both tables and the version table, and change nothing.
- `purger`: uses the retention. It can read both tables and the version table, delete rows, and update the columns that
  `erase` empties. It cannot insert.

`--schema` names the schema, if the tables are in another one than `commandbus`.

Run this again after each upgrade of the schema, before you start the new version of the application: a new column needs
its right.

Rights and CHECKs cannot compare a row with its earlier version, or keep the purger from a process that has not ended.
If you want the database to do that, install the triggers of `commandbus_process.guards`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from psycopg import sql

from commandbus_process._columns import ERASED_ENTRY, LOGGED, REPLY, SAVED, WRITTEN_BY_ERASE, WRITTEN_BY_UPDATE
from commandbus_process._schema_name import SchemaName
from commandbus_process._scripts import ScriptParser
from commandbus_process.errors import InvalidInputError
from commandbus_process.tables import SCHEMA, VERSION_TABLE, process, process_audit

Purpose: TypeAlias = Literal["application", "reader", "purger"]
"""What a role is for."""

_SCHEMA = "SCHEMA {schema}"
_REVISION = f"{{schema}}.{VERSION_TABLE}"
_PROCESS, _AUDIT = (f"{{schema}}.{table.name}" for table in (process, process_audit))


def _on(right: str, columns: Sequence[str]) -> str:
    return f"{right} ({', '.join(columns)})"


_RIGHTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "application": {
        _SCHEMA: ["USAGE"],
        _PROCESS: ["SELECT", _on("INSERT", SAVED), _on("UPDATE", WRITTEN_BY_UPDATE)],
        _AUDIT: ["SELECT", _on("INSERT", LOGGED), _on("UPDATE", REPLY)],
        _REVISION: ["SELECT"],
    },
    "reader": {_SCHEMA: ["USAGE"], _PROCESS: ["SELECT"], _AUDIT: ["SELECT"], _REVISION: ["SELECT"]},
    "purger": {
        _SCHEMA: ["USAGE"],
        _PROCESS: ["SELECT", "DELETE", _on("UPDATE", WRITTEN_BY_ERASE)],
        _AUDIT: ["SELECT", "DELETE", _on("UPDATE", ERASED_ENTRY)],
        _REVISION: ["SELECT"],
    },
}


# Adopted tables may have a sequence of another name, in another schema, or an identity, which needs no right. So the
# server looks for the sequence that the default of `id` calls. pg_get_serial_sequence would find only one that belongs
# to the column.
_GRANT_SEQUENCE = """\
DO $$
DECLARE
    sequence regclass;
BEGIN
    SELECT refobjid INTO sequence
    FROM pg_catalog.pg_attribute
    JOIN pg_catalog.pg_attrdef ON adrelid = attrelid AND adnum = attnum
    JOIN pg_catalog.pg_depend ON classid = 'pg_catalog.pg_attrdef'::regclass AND objid = pg_attrdef.oid
    JOIN pg_catalog.pg_class ON pg_class.oid = refobjid AND relkind = 'S'
    WHERE attrelid = pg_catalog.to_regclass(pg_catalog.format('%I.process_audit', {name})) AND attname = 'id'
        AND refclassid = 'pg_catalog.pg_class'::regclass;
    IF FOUND THEN
        EXECUTE 'GRANT USAGE ON SEQUENCE ' || sequence::text || ' TO ' || {grantee};
    END IF;
END
$$"""


def grant_statements(role: str, purpose: Purpose = "application", *, schema: str = SCHEMA) -> list[str]:
    """Return the GRANT statements for a role. The schema's owner runs them. They can be run again.

    For an application, the last one is a DO block. It looks for the sequence that numbers the audit trail, whatever its
    name is, and grants its use.

    Args:
        role: The role's name. Do not quote it: this function does. The role must exist.
        purpose: What the role is for: `application`, `reader` or `purger`.
        schema: The schema that has the tables. Do not quote it either.

    Raises:
        ValueError: There is no such purpose, or no schema can have this name.
    """
    if purpose not in _RIGHTS:
        raise ValueError(f"purpose must be one of {', '.join(_RIGHTS)}")
    grantee = sql.Identifier(role).as_string()
    name = SchemaName(schema)
    grants = [
        f"GRANT {', '.join(rights)} ON {name.fill(target)} TO {grantee}" for target, rights in _RIGHTS[purpose].items()
    ]
    if purpose == "application":
        grants.append(name.fill(_GRANT_SEQUENCE, grantee=sql.Literal(grantee).as_string()))
    return grants


def main(arguments: list[str]) -> int:
    """Print the statements as a script for psql."""
    usage = "%(prog)s ROLE [--for application|reader|purger] [--schema SCHEMA]"
    parser = ScriptParser(__doc__ or "", "python -m commandbus_process.grants", usage)
    parser.add_argument("role")
    parser.add_argument("--for", dest="purpose", choices=get_args(Purpose), default="application")
    parser.add_argument("--schema", default=SCHEMA)
    try:
        parsed = parser.parse_args(arguments)
        if not parsed.role:
            parser.error("ROLE must not be empty")
        statements = grant_statements(parsed.role, parsed.purpose, schema=parsed.schema)
    except InvalidInputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except SystemExit:
        return 2
    sys.stdout.write("".join(f"{statement};\n" for statement in statements))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
