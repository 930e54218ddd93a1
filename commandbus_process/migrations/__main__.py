"""The command line of the migrations. The database is named by DATABASE_URL."""

import argparse
import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from commandbus_process._schema_name import checked_schema
from commandbus_process.errors import ProcessRepositoryError
from commandbus_process.migrations._checking import judged
from commandbus_process.migrations._comparing import differences
from commandbus_process.migrations._running import Way, current, run_on_engine, sql, stamp
from commandbus_process.migrations._url import migrators_engine
from commandbus_process.migrations.adoption import compare
from commandbus_process.tables import REVISION, SCHEMA

_EPILOG = """\
The database is named by DATABASE_URL=postgresql://user@host/database. `sql` connects to nothing.
A revision is a name like commandbus_0005, or its number. Exit status: 0, done; 1, it could not be done, or `check` or
`adopt` has found something; 2, the command cannot be understood.
"""


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@contextmanager
def _connected() -> Generator[Connection]:
    engine = migrators_engine()
    with engine.begin() as connection:
        yield connection


def _moved(given: argparse.Namespace, way: Way) -> int:
    with _connected() as connection:
        before = current(connection, schema=given.schema)
    run_on_engine(way, migrators_engine(), given.revision, given.schema)
    with _connected() as connection:
        after = current(connection, schema=given.schema)
    _say(f"nothing to do: {after or 'base'}" if before == after else f"{before or 'base'} -> {after or 'base'}")
    return 0


def _upgrade(given: argparse.Namespace) -> int:
    return _moved(given, "upgrade")


def _downgrade(given: argparse.Namespace) -> int:
    return _moved(given, "downgrade")


def _current(given: argparse.Namespace) -> int:
    with _connected() as connection:
        found = current(connection, schema=given.schema)
    _say(f"{found or 'base'}{' (newest)' if found == REVISION else ''}")
    return 0


def _check(given: argparse.Namespace) -> int:
    with _connected() as connection:
        revision = judged(connection, given.schema)
        found = [] if revision.is_newer else differences(connection, schema=given.schema)
    _say(f"{revision.found}{', which is newer than this version, and works with it' if revision.is_newer else ''}")
    for each in found:
        _say(f"differs: {each}")
    return 1 if found else 0


def _stamp(given: argparse.Namespace) -> int:
    with _connected() as connection:
        stamp(connection, given.revision, schema=given.schema)
        _say(f"stamped: {current(connection, schema=given.schema) or 'base'}. The tables were not looked at")
    return 0


def _adopt(given: argparse.Namespace) -> int:
    with _connected() as connection:
        found = compare(connection, given.schema)
        _say(found.as_json() if given.json else found.as_text())
        if not found.fits or found.revision is None:
            return 1
        if not given.dry_run:
            stamp(connection, found.revision, schema=given.schema)
    if not given.dry_run:
        option = "" if given.schema == SCHEMA else f" --schema {shlex.quote(given.schema)}"
        # Not into the JSON.
        sys.stderr.write(
            f"Stamped {found.revision}. Go on with: python -m commandbus_process.migrations upgrade{option}\n"
        )
    return 0


def _sql(given: argparse.Namespace) -> int:
    way: Way = "downgrade" if given.down else "upgrade"
    sys.stdout.write(sql(given.revision, from_revision=given.begin, schema=given.schema, way=way))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m commandbus_process.migrations",
        description="Make, change and check the schema.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument("--schema", default=SCHEMA, help=f"the schema that has the tables; {SCHEMA} by default")
        added.set_defaults(run=run)
        return added

    up = command("upgrade", _upgrade, "Upgrade the tables, or make them.")
    up.add_argument("revision", nargs="?", default="head", metavar="REVISION", help="head by default")
    down = command("downgrade", _downgrade, "Downgrade the tables. docs/schema.md says what is lost.")
    down.add_argument("revision", metavar="REVISION", help="a revision, or base: drop the tables")
    command("current", _current, "Print the revision of the database.")
    command("check", _check, "Check the revision, and compare the tables with what this version needs.")
    stamped = command("stamp", _stamp, "Write down a revision, and change and look at nothing. Prefer adopt.")
    stamped.add_argument("revision", metavar="REVISION")
    adopted = command(
        "adopt", _adopt, "Compare tables that were made by hand with each revision, and stamp the one that they fit."
    )
    adopted.add_argument("--json", action="store_true", help="print the comparison as JSON")
    adopted.add_argument("--dry-run", action="store_true", help="only compare")
    printed = command("sql", _sql, "Print the SQL of an upgrade, for somebody else to run.")
    printed.add_argument("revision", nargs="?", default="head", metavar="REVISION", help="head by default")
    printed.add_argument("--from", dest="begin", default="base", metavar="REVISION", help="where the database is")
    printed.add_argument("--down", action="store_true", help="print a downgrade, from --from to REVISION")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run a command, and return its exit status."""
    given = _parser().parse_args(arguments)
    try:
        checked_schema(given.schema)
        status: int = given.run(given)
    except (CommandError, ProcessRepositoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OperationalError as error:
        # SQLAlchemy's message has a link to its documentation. The driver's says what is wrong with the connection.
        sys.stderr.write(f"{error.orig}\n")
        return 1
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
