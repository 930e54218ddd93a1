"""Triggers, if you want them, that refuse what rights and CHECKs cannot: a change of what must stay as it is.

    python -m commandbus_process.guards | psql "$DATABASE_URL"
    python -m commandbus_process.guards --remove | psql "$DATABASE_URL"

Whoever installs them, for example the migrator, must own the tables. They hold for every role, the owner too:

- A recorded reply keeps its outcome, data and time.
- What was sent stays, and so do a process's key, type and time of creation.
- The version of a process never goes down.

A refused UPDATE fails with SQLSTATE 23001 (restrict_violation), which SQLAlchemy raises as `IntegrityError`. The
message names the process or the command, and `diag.constraint_name` the trigger. It quotes no state and no payload.

The version may stay the same: plain SQL of adopted software sets `updated_at` and knows no version. An UPDATE that
writes the same values again is no change. But other software may write a reply again whenever it is delivered again,
with a new time: that is refused. INSERT and DELETE are not checked; the application's role has no right to DELETE.

To change something nevertheless, the owner disables a trigger, and enables it in the same transaction:

    ALTER TABLE commandbus.process_audit DISABLE TRIGGER keep_reply;

The library's own updates name only columns that may change, touch no recorded reply and lower no version. For them the
server evaluates the conditions of the triggers and calls no function.

Not for Citus: it refuses triggers on distributed tables. Needs revision 0004, whose downgrade removes the triggers.
Install them again after each upgrade of the schema, so that they know its new columns.
"""

import sys
from collections.abc import Iterable

from commandbus_process._columns import REPLY, WRITTEN_BY_UPDATE
from commandbus_process.tables import process, process_audit

_REMOVAL = [
    "DROP TRIGGER IF EXISTS keep_process ON commandbus.process",
    "DROP TRIGGER IF EXISTS keep_version ON commandbus.process",
    "DROP TRIGGER IF EXISTS keep_command ON commandbus.process_audit",
    "DROP TRIGGER IF EXISTS keep_reply ON commandbus.process_audit",
    "DROP FUNCTION IF EXISTS commandbus.guard_process()",
    "DROP FUNCTION IF EXISTS commandbus.guard_process_audit()",
]


def guard_statements(*, remove: bool = False) -> list[str]:
    """Return the statements that install the triggers, or those that remove them. They can be run again.

    Args:
        remove: Whether to remove them.
    """
    if remove:
        return list(_REMOVAL)
    # A function runs only if an UPDATE names a column that must stay, or if the condition of a trigger holds. Names are
    # resolved among the server's own: an operator of the same name in another schema must not answer.
    identity = [column.name for column in process.c if column.name not in WRITTEN_BY_UPDATE]
    sent = [column.name for column in process_audit.c if column.name not in REPLY]
    return [
        f"""\
CREATE OR REPLACE FUNCTION commandbus.guard_process() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF {_differs(identity)} THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('key, type and creation of process %s in domain %L cannot be changed',
                             OLD.process_id, OLD.domain);
    ELSIF NEW.version < OLD.version THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('the version of process %s in domain %L cannot go down', OLD.process_id, OLD.domain);
    END IF;
    RETURN NEW;
END
$$""",
        f"""\
CREATE OR REPLACE FUNCTION commandbus.guard_process_audit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF {_differs(sent)} THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('what was sent with command %s of process %s in domain %L cannot be changed',
                             OLD.command_id, OLD.process_id, OLD.domain);
    ELSIF OLD.reply_outcome IS NOT NULL AND {_differs(REPLY)} THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('the reply to command %s of process %s in domain %L is recorded and cannot be changed',
                             OLD.command_id, OLD.process_id, OLD.domain);
    END IF;
    RETURN NEW;
END
$$""",
        f"""\
CREATE OR REPLACE TRIGGER keep_process BEFORE UPDATE OF {", ".join(identity)} ON commandbus.process
FOR EACH ROW EXECUTE FUNCTION commandbus.guard_process()""",
        """\
CREATE OR REPLACE TRIGGER keep_version BEFORE UPDATE ON commandbus.process
FOR EACH ROW WHEN (NEW.version OPERATOR(pg_catalog.<) OLD.version) EXECUTE FUNCTION commandbus.guard_process()""",
        f"""\
CREATE OR REPLACE TRIGGER keep_command BEFORE UPDATE OF {", ".join(sent)} ON commandbus.process_audit
FOR EACH ROW EXECUTE FUNCTION commandbus.guard_process_audit()""",
        """\
CREATE OR REPLACE TRIGGER keep_reply BEFORE UPDATE ON commandbus.process_audit
FOR EACH ROW WHEN (OLD.reply_outcome IS NOT NULL) EXECUTE FUNCTION commandbus.guard_process_audit()""",
    ]


def _differs(columns: Iterable[str]) -> str:
    """Whether one of the columns is another than before, as SQL."""
    return f"({_qualified('NEW', columns)}) IS DISTINCT FROM ({_qualified('OLD', columns)})"


def _qualified(row: str, columns: Iterable[str]) -> str:
    return ", ".join(f"{row}.{column}" for column in columns)


def main(arguments: list[str]) -> int:
    """Print the statements as a script for psql."""
    if arguments not in ([], ["--remove"]):
        sys.stderr.write("usage: python -m commandbus_process.guards [--remove]\n\n" + (__doc__ or ""))
        return 2
    # In one transaction, so that no update meets half of them.
    statements = ["BEGIN", *guard_statements(remove=bool(arguments)), "COMMIT"]
    sys.stdout.write("".join(f"{statement};\n" for statement in statements))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
