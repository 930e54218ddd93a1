"""Print the GRANT statements for an application's role: the rights that it needs, and no more.

    python -m commandbus_process.grants ROLE | psql -v ON_ERROR_STOP=1 -1 "$DATABASE_URL"

Use two roles. A migrator owns the schema `commandbus` and runs Alembic. The application's role gets the rights that are
printed here. It can read both tables, insert rows, and update the columns that the repository updates. It cannot delete
rows, change definitions or change what was sent. It can read Alembic's version table, and not write it.

Run this again after each upgrade of the schema, before you start the new version of the application: a new column needs
its right.

Rights and CHECKs cannot compare a row with its earlier version. If you want the database to protect recorded replies,
install the triggers of `commandbus_process.guards`.
"""

import sys

from psycopg import sql

from commandbus_process._columns import LOGGED, REPLY, SAVED, WRITTEN_BY_UPDATE
from commandbus_process.tables import VERSION_TABLE, metadata, process, process_audit


def grant_statements(role: str) -> list[str]:
    """Return the GRANT statements for an application's role. The schema's owner runs them. They can be run again.

    Args:
        role: The role's name. Do not quote it: this function does. The role must exist.
    """
    grantee = sql.Identifier(role).as_string()
    schema = metadata.schema
    rights = {
        f"SCHEMA {schema}": "USAGE",
        process.fullname: _rights(SAVED, WRITTEN_BY_UPDATE),
        process_audit.fullname: _rights(LOGGED, REPLY),
        f"SEQUENCE {schema}.process_audit_id_seq": "USAGE",
        f"{schema}.{VERSION_TABLE}": "SELECT",
    }
    return [f"GRANT {right} ON {target} TO {grantee}" for target, right in rights.items()]


def _rights(inserted: tuple[str, ...], updated: tuple[str, ...]) -> str:
    return f"SELECT, INSERT ({', '.join(inserted)}), UPDATE ({', '.join(updated)})"


def main(arguments: list[str]) -> int:
    """Print the statements as a script for psql."""
    if len(arguments) != 1 or arguments[0].startswith("-") or not arguments[0]:
        sys.stderr.write("usage: python -m commandbus_process.grants ROLE\n\n" + (__doc__ or ""))
        return 2
    sys.stdout.write("".join(f"{statement};\n" for statement in grant_statements(arguments[0])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
