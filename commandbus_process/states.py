"""Check stored states before a new type of state is deployed, and see which versions are stored.

    python -m commandbus_process.states check --state-type app.models:OrderState
    python -m commandbus_process.states check --state-type app.models:ORDER_STATES --domain orders --process-type order
    python -m commandbus_process.states histogram --state-type app.models:ORDER_STATES

`DATABASE_URL` names the database. The role needs the rights of `python -m commandbus_process.grants ROLE --for reader`.
`--state-type` names what the new program passes as `state_type`: a type, a `StateVersions`, or a mapping by process
type. With a mapping, only the process types in it are looked at. `--schema` names the schema of the tables.

- `check` reads every process that has not ended, as the new program would, and checks that it could write the state
  again. It prints how many states of each version fit, and which do not: the process and the field, and no value. It
  reads the rows one after the other, in flat memory, in one read-only transaction. Nothing is changed.
- `histogram` counts the stored versions of each process type, and prints which upcasters are not needed any more. It
  reads the whole table. An erased process counts for nothing: its state is empty.

The exit status is 0 if everything fits, 1 if a state does not, and 2 if the command could not do its work.
"""

import argparse
import asyncio
import importlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

from alembic.util import CommandError
from sqlalchemy import ColumnElement, Integer, Select, Text, and_, func, literal_column, not_, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process._state_versions import FIRST, StateVersions
from commandbus_process._states import States
from commandbus_process.errors import InvalidInputError
from commandbus_process.migrations._url import database_url
from commandbus_process.models import TERMINAL
from commandbus_process.tables import metadata, process

_BATCH = 1_000
_SHOWN = 100


class Wanted(NamedTuple):
    """Which processes are looked at; `None`: all."""

    domain: str | None
    process_types: tuple[str, ...] | None


class Unfit(NamedTuple):
    """A process whose state does not fit."""

    domain: str
    process_id: UUID
    process_type: str
    version: int
    reason: str


class CheckReport(NamedTuple):
    """What `check` has found.

    Attributes:
        fit: How many states fit, by process type and stored version.
        unfit: How many do not.
        first: The first of those that do not fit.
    """

    fit: Counter[tuple[str, int]]
    unfit: Counter[tuple[str, int]]
    first: list[Unfit]


class Stored(NamedTuple):
    """How many processes of a type have a version, as `histogram` counts them."""

    process_type: str
    version: int
    live: int
    ended: int
    erased: int


_ENDED = process.c.status.in_(sorted(TERMINAL))
_VERSION = func.coalesce(process.c.state_version, literal_column(str(FIRST)), type_=Integer())


def _of(wanted: Wanted) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = [literal_column("true")]
    if wanted.domain is not None:
        conditions.append(process.c.domain == wanted.domain)
    if wanted.process_types is not None:
        conditions.append(process.c.process_type.in_(wanted.process_types))
    return and_(*conditions)


def _live_states(wanted: Wanted) -> Select[*tuple[Any, ...]]:
    return select(
        process.c.domain,
        process.c.process_id,
        process.c.process_type,
        _VERSION.label("version"),
        sql_cast(process.c.state, Text).label("state"),
    ).where(not_(_ENDED), _of(wanted))


def _histogram(wanted: Wanted) -> Select[*tuple[Any, ...]]:
    count = func.pg_catalog.count(literal_column("*"))
    is_empty = process.c.state == literal_column("'{}'::jsonb", process.c.state.type)
    return (
        select(
            process.c.process_type,
            _VERSION.label("version"),
            count.filter(not_(_ENDED)).label("live"),
            count.filter(_ENDED, not_(is_empty)).label("ended"),
            count.filter(_ENDED, is_empty).label("erased"),
        )
        .where(_of(wanted))
        .group_by(literal_column("1"), literal_column("2"))
        .order_by(literal_column("1"), literal_column("2"))
    )


async def check(conn: AsyncConnection, states: States[Any], wanted: Wanted, shown: int = _SHOWN) -> CheckReport:
    """Read all states that match, and return which fit.

    Args:
        conn: A connection in a transaction.
        states: The types of the states.
        wanted: Which processes.
        shown: The maximum length of the list of those that do not fit.
    """
    report = CheckReport(Counter(), Counter(), [])
    rows = await conn.stream(_live_states(wanted), execution_options={"yield_per": _BATCH})
    async for row in rows:
        domain, process_id, process_type, version, text = row
        reason = _why_unfit(states, process_type, version, text)
        if reason is None:
            report.fit[process_type, version] += 1
            continue
        report.unfit[process_type, version] += 1
        if len(report.first) < shown:
            report.first.append(Unfit(domain, process_id, process_type, version, reason))
    return report


def _why_unfit(states: States[Any], process_type: str, version: int, text: str) -> str | None:
    """Return why a stored state cannot be read, or written again, without quoting it; `None` if both work."""
    state_type = states.find_type(process_type)
    if version > state_type.newest:
        return f"it is newer than version {state_type.newest}"
    try:
        state = state_type.read_checked(state_type.current(text, version))
    except Exception as error:  # noqa: BLE001 - a model's validators may raise anything
        return state_type.explain(error)
    try:
        state_type.write(state)
    except InvalidInputError as error:
        return f"it can be read, and not be written again: {error}"
    return None


async def histogram(conn: AsyncConnection, wanted: Wanted) -> list[Stored]:
    """Return how many processes of each type have each version, in this order."""
    return [Stored(*row) for row in await conn.execute(_histogram(wanted))]


def show_check(report: CheckReport) -> list[str]:
    """Return the lines that report a check."""
    groups = sorted({*report.fit, *report.unfit})
    rows = [(each[0], *map(str, (each[1], report.fit[each], report.unfit[each]))) for each in groups]
    lines = _as_table(("process type", "version", "fit", "do not fit"), rows)
    if report.first:
        lines.append("")
    lines += [
        f"{each.domain} {each.process_id} ({each.process_type}, version {each.version}): {each.reason}"
        for each in report.first
    ]
    left = report.unfit.total() - len(report.first)
    return [*lines, f"and {left} more"] if left else lines


def show_histogram(stored: Sequence[Stored], declared: object) -> list[str]:
    """Return the lines that report a histogram.

    Args:
        stored: What was counted.
        declared: What `--state-type` names; `None`: nothing.
    """
    numbers = [(each.process_type, *map(str, each[1:])) for each in stored]
    lines = [*_as_table(("process type", "version", "live", "ended", "erased"), numbers), ""]
    if declared is None or isinstance(declared, Mapping):
        of_types = cast("Mapping[str, object]", declared or {})
        for name in dict.fromkeys(each.process_type for each in stored):
            rows = [each for each in stored if each.process_type == name]
            lines.append(f"{name}: {_what_can_go(rows, of_types.get(name), is_declared=declared is not None)}")
    elif stored:
        lines.append(_what_can_go(stored, declared, is_declared=True))
    return lines


def _what_can_go(stored: Iterable[Stored], declared: object, *, is_declared: bool) -> str:
    versions = [each.version for each in stored if each.live or each.ended]
    if not versions:
        return "no state is stored, so every upcaster can go"
    oldest = min(versions)
    if is_declared:
        upcasters = declared.upcasters if isinstance(declared, StateVersions) else ()
        needless = [str(each) for each in upcasters if each < oldest]
        what = f"the upcasters from {', '.join(needless)} can go" if needless else "no upcaster can go"
    else:
        what = f"upcasters from versions below {oldest} can go" if oldest > FIRST else "no upcaster can go"
    return f"the oldest state is at version {oldest}; {what}"


def _as_table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heading, *rows)
    ]


def _load(path: str) -> object:
    """Return what `module:name` names."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise CommandError(f"--state-type must be like app.models:OrderState, not {path}")
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise CommandError(f"--state-type {path} cannot be imported: {error}") from error
    return found


def _engine(schema: str) -> AsyncEngine:
    return create_async_engine(
        database_url(),
        isolation_level="REPEATABLE READ",
        execution_options={"schema_translate_map": {metadata.schema: schema}, "postgresql_readonly": True},
        hide_parameters=True,
    )


async def _run(arguments: argparse.Namespace) -> int:
    declared = None if arguments.state_type is None else _load(arguments.state_type)
    try:
        states: States[Any] = States(declared)
    except TypeError as error:
        raise CommandError(f"--state-type {arguments.state_type}: {error}") from error
    types = states.process_types
    if arguments.process_type is not None:
        if types is not None and arguments.process_type not in types:
            raise CommandError(f"--state-type declares no type for the process type {arguments.process_type!r}")
        types = frozenset({arguments.process_type})
    wanted = Wanted(arguments.domain, None if types is None else tuple(sorted(types)))
    engine = _engine(arguments.schema)
    try:
        async with engine.connect() as conn:
            if arguments.command == "histogram":
                lines, status = show_histogram(await histogram(conn, wanted), declared), 0
            else:
                report = await check(conn, states, wanted, arguments.show)
                lines, status = show_check(report), int(bool(report.unfit))
    except DBAPIError as error:
        told = getattr(getattr(error.orig, "diag", None), "message_primary", None)
        raise CommandError(f"the database cannot be read: {told or type(error.orig).__name__}") from None
    finally:
        await engine.dispose()
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m commandbus_process.states",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, told in (("check", "which live states fit"), ("histogram", "which versions are stored")):
        command = commands.add_parser(name, help=told, allow_abbrev=False)
        command.add_argument(
            "--state-type", required=name == "check", metavar="MODULE:NAME", help="the new program's state_type"
        )
        command.add_argument("--domain", help="only processes of this domain")
        command.add_argument("--process-type", help="only processes of this type")
        command.add_argument("--schema", default=metadata.schema, help="the schema of the tables (%(default)s)")
        if name == "check":
            listed = "how many of those that do not fit are listed (%(default)s)"
            command.add_argument("--show", type=int, default=_SHOWN, help=listed)
    return parser


def main(arguments: list[str]) -> int:
    """Run a command, and return its exit status."""
    try:
        parsed = _parser().parse_args(arguments)
        return asyncio.run(_run(parsed))
    except CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
