"""Print optional triggers that reject what rights and CHECKs cannot: changes of rows that must not change.

    python -m commandbus_process.guards | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
    python -m commandbus_process.guards --remove | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"

`--schema` names the schema, if the tables are in another one than `commandbus`. The role that installs them must own
the tables, like the migrator. They hold for every role, including the owner:

- A recorded reply keeps its outcome, data and time.
- A command keeps everything that was logged when it was sent.
- A process keeps its key, type, business key and time of creation.
- The version of a process never goes down.
- A process that has not ended is not deleted, and no step of it is. Not even the purger's role can do that.

`ProcessRetention.erase` can still empty the payloads and the business key of a process that has ended. So can everybody
who has the right to UPDATE these columns. Nothing else about them can be changed.

A rejected UPDATE or DELETE fails with SQLSTATE 23001 (restrict_violation), which SQLAlchemy raises as `IntegrityError`.
The message names the process or the command, and `diag.constraint_name` names the trigger. It quotes no state and no
payload.

The version may stay the same: older software that uses plain SQL sets `updated_at` and does not know versions. An
UPDATE that writes the same values again is not a change. But if other software writes a redelivered reply again, with a
new time, that is rejected. INSERT and TRUNCATE are not checked. The application's role has no right to TRUNCATE.

They are no part of the migrations. Citus refuses triggers on distributed tables, and adopted tables have other writers,
which may change or delete what the triggers protect. A row-level security policy could keep processes that have not
ended, too. But then PostgreSQL refuses COPY, so `save_many` would have to use INSERT, which is slower, and every other
writer would need a policy of its own.

If you have to change such a row, the owner disables the trigger, and enables it again in the same transaction:

    ALTER TABLE commandbus.process_audit DISABLE TRIGGER keep_reply;

The library's own updates write only columns that may change, never a recorded reply, and never lower a version. For
them the server checks the conditions of the triggers and calls no function. A purge calls one function for each
statement, and `erase` one for each row that it empties.

They need revision 0004. Its downgrade
removes them. Install them again after each upgrade of the schema, so that they know the new columns.
"""

import sys
from collections.abc import Iterable

from commandbus_process._columns import ERASED, ERASED_ENTRY, READ, REPLY, WRITTEN_BY_UPDATE
from commandbus_process._schema_name import SchemaName
from commandbus_process._scripts import ScriptParser
from commandbus_process.errors import InvalidInputError
from commandbus_process.models import TERMINAL
from commandbus_process.tables import SCHEMA, process_audit

_TERMINAL = "'{" + ",".join(sorted(TERMINAL)) + "}'"

_REMOVAL = [
    "DROP TRIGGER IF EXISTS keep_process ON {schema}.process",
    "DROP TRIGGER IF EXISTS keep_version ON {schema}.process",
    "DROP TRIGGER IF EXISTS keep_live_process ON {schema}.process",
    "DROP TRIGGER IF EXISTS keep_live_steps ON {schema}.process_audit",
    "DROP TRIGGER IF EXISTS keep_command ON {schema}.process_audit",
    "DROP TRIGGER IF EXISTS keep_reply ON {schema}.process_audit",
    "DROP FUNCTION IF EXISTS {schema}.guard_process()",
    "DROP FUNCTION IF EXISTS {schema}.guard_process_audit()",
]


def guard_statements(*, remove: bool = False, schema: str = SCHEMA) -> list[str]:
    """Return the statements that install the triggers, or those that remove them. They can be run again.

    Args:
        remove: Whether to remove them.
        schema: The schema that has the tables. Do not quote it: this function does.

    Raises:
        InvalidInputError: No schema can have this name.
    """
    name = SchemaName(schema)
    return [name.fill(template) for template in (_REMOVAL if remove else _installation())]


def _installation() -> list[str]:
    """Return the statements that install the triggers. `{schema}` stands for the schema."""
    # A function runs only if an UPDATE names a column that must not change, or if a trigger's condition is true.
    # `search_path` has only the server's own schema, so that no operator of the same name in another schema is called.
    # The functions of older versions had these names, too: the downgrade of revision 0004 drops them.
    identity = [name for name in READ if name not in WRITTEN_BY_UPDATE]
    sent = [column.name for column in process_audit.c if column.name not in REPLY]
    return [
        f"""\
CREATE OR REPLACE FUNCTION {{schema}}.guard_process() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('process %s in domain %L has not ended and cannot be deleted',
                             OLD.process_id, OLD.domain);
    ELSIF {_changes(identity, ERASED, _has_ended("OLD"))} THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('key, type, business key and creation of process %s in domain %L cannot be changed',
                             OLD.process_id, OLD.domain);
    ELSIF NEW.version < OLD.version THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('the version of process %s in domain %L cannot go down', OLD.process_id, OLD.domain);
    END IF;
    RETURN NEW;
END
$$""",
        f"""\
CREATE OR REPLACE FUNCTION {{schema}}.guard_process_audit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    live record;
BEGIN
    IF TG_OP = 'DELETE' THEN
        {_FIND_LIVE};
        IF FOUND THEN
            RAISE restrict_violation USING CONSTRAINT = TG_NAME,
                MESSAGE = format('process %s in domain %L has not ended and its steps cannot be deleted',
                                 live.process_id, live.domain);
        END IF;
        RETURN NULL;
    ELSIF {_changes(sent, ERASED_ENTRY, _OF_ENDED)} THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('what was sent with command %s of process %s in domain %L cannot be changed',
                             OLD.command_id, OLD.process_id, OLD.domain);
    ELSIF OLD.reply_outcome IS NOT NULL AND ({_changes(REPLY, ERASED_ENTRY, _OF_ENDED)}) THEN
        RAISE restrict_violation USING CONSTRAINT = TG_NAME,
            MESSAGE = format('the reply to command %s of process %s in domain %L is recorded and cannot be changed',
                             OLD.command_id, OLD.process_id, OLD.domain);
    END IF;
    RETURN NEW;
END
$$""",
        f"""\
CREATE OR REPLACE TRIGGER keep_process BEFORE UPDATE OF {", ".join(identity)} ON {{schema}}.process
FOR EACH ROW EXECUTE FUNCTION {{schema}}.guard_process()""",
        """\
CREATE OR REPLACE TRIGGER keep_version BEFORE UPDATE ON {schema}.process
FOR EACH ROW WHEN (NEW.version OPERATOR(pg_catalog.<) OLD.version) EXECUTE FUNCTION {schema}.guard_process()""",
        f"""\
CREATE OR REPLACE TRIGGER keep_live_process BEFORE DELETE ON {{schema}}.process
FOR EACH ROW WHEN (NOT {_has_ended("OLD")}) EXECUTE FUNCTION {{schema}}.guard_process()""",
        f"""\
CREATE OR REPLACE TRIGGER keep_command BEFORE UPDATE OF {", ".join(sent)} ON {{schema}}.process_audit
FOR EACH ROW EXECUTE FUNCTION {{schema}}.guard_process_audit()""",
        """\
CREATE OR REPLACE TRIGGER keep_reply BEFORE UPDATE ON {schema}.process_audit
FOR EACH ROW WHEN (OLD.reply_outcome IS NOT NULL) EXECUTE FUNCTION {schema}.guard_process_audit()""",
        # Once for each statement, at its end. There the processes that it deleted, too, are gone.
        """\
CREATE OR REPLACE TRIGGER keep_live_steps AFTER DELETE ON {schema}.process_audit
REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.guard_process_audit()""",
    ]


def _has_ended(row: str) -> str:
    """Return the SQL that is true if a process has ended."""
    return f"({row}.status OPERATOR(pg_catalog.=) ANY ({_TERMINAL}::text[]))"


_OF_ENDED = (
    "EXISTS (SELECT FROM {schema}.process "
    "WHERE process.domain = OLD.domain AND process.process_id = OLD.process_id AND " + _has_ended("process") + ")"
)
"""The SQL that is true if the step's process has ended."""


_FIND_LIVE = f"""\
SELECT process.domain, process.process_id INTO live
            FROM deleted JOIN {{schema}}.process USING (domain, process_id) WHERE NOT {_has_ended("process")} LIMIT 1\
"""  # noqa: S608 - nothing in it comes from outside


def _changes(columns: Iterable[str], erased: Iterable[str], can_be_erased: str) -> str:
    """Return the SQL that is true if one of the columns has changed, and was not just erased.

    Args:
        columns: The columns that must not change.
        erased: Those that `erase` can set to NULL.
        can_be_erased: The SQL that is true if it can. It is looked at only if such a column has changed.
    """
    columns = list(columns)
    emptied = [name for name in columns if name in set(erased)]
    conditions = [_differs([name for name in columns if name not in emptied])]
    conditions += [
        f"NEW.{name} IS DISTINCT FROM OLD.{name} AND (NEW.{name} IS NOT NULL OR NOT {can_be_erased})"
        for name in emptied
    ]
    return "\n        OR ".join(conditions)


def _differs(columns: Iterable[str]) -> str:
    """Return the SQL that is true if one of the columns has changed."""
    return f"({_qualified('NEW', columns)}) IS DISTINCT FROM ({_qualified('OLD', columns)})"


def _qualified(row: str, columns: Iterable[str]) -> str:
    return ", ".join(f"{row}.{column}" for column in columns)


def main(arguments: list[str]) -> int:
    """Print the statements as a script for psql."""
    parser = ScriptParser(__doc__ or "", "python -m commandbus_process.guards", "%(prog)s [--remove] [--schema SCHEMA]")
    parser.add_argument("--remove", action="store_true")
    parser.add_argument("--schema", default=SCHEMA)
    try:
        given = parser.parse_args(arguments)
        printed = guard_statements(remove=given.remove, schema=given.schema)
    except InvalidInputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except SystemExit:
        return 2
    # In one transaction, so that no update runs with only some of them.
    statements = ["BEGIN", *printed, "COMMIT"]
    sys.stdout.write("".join(f"{statement};\n" for statement in statements))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
