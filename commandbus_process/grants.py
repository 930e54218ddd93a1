"""The rights that an application needs, and no more.

    python -m commandbus_process.grants ROLE | psql "$DATABASE_URL"

Two roles are meant. A migrator owns the schema `commandbus` and runs Alembic. The application's role gets what is
printed here: it can read both tables, insert into them, and update the columns that the repository updates. It can
delete nothing, change no definition, not rewrite what was sent, and only read Alembic's version table.

Run it again after each upgrade of the schema, before you start the new version of the application: a new column needs
its right.

Rights and CHECKs cannot compare a row with what it was before. The triggers of `commandbus_process.guards` can, if you
want a recorded reply to stay as it is.
"""

import sys

from psycopg import sql

from commandbus_process._columns import LOGGED, REPLY, SAVED, WRITTEN_BY_UPDATE
from commandbus_process.tables import VERSION_TABLE, metadata, process, process_audit


def grant_statements(role: str) -> list[str]:
    """Return the GRANT statements for an application's role, to be run by the schema's owner. They can be run again.

    Args:
        role: The role's name, as it is; it is quoted here. It has to exist.
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
