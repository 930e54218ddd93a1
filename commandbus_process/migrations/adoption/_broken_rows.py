"""Look for rows that break a key or a CHECK. Only keys are read, never a state or a payload."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sqlalchemy import Connection

from commandbus_process.migrations.adoption._catalogue import as_it_is
from commandbus_process.migrations.adoption._compare_columns import converts
from commandbus_process.migrations.adoption._compare_constraints import is_unique_on, matches
from commandbus_process.migrations.adoption._expected import expected_layouts
from commandbus_process.migrations.adoption._verdicts import (
    AdoptionObject,
    BrokenRows,
    Compared,
    Verdict,
    listed,
    quoted,
)
from commandbus_process.models import ProcessStatus, ReplyOutcome
from commandbus_process.tables import process, process_audit

_FIRST = 5
# The server_version_num that has pg_input_is_valid. Before it, the statement fails on the first value.
_HAS_INPUT_IS_VALID = 160_000
_NAMES = {
    process.name: ("domain", "process_id"),
    process_audit.name: ("id", "domain", "process_id", "command_id"),
}
"""What names a row in the report."""


class _Rule(NamedTuple):
    """What must hold, and the SQL that finds the rows for which it does not."""

    name: str
    reason: str
    needs: frozenset[str]
    query: str
    blocks: bool


def look_for_broken_rows(connection: Connection, tables: Mapping[str, Compared]) -> Iterator[AdoptionObject]:
    """Return what breaks a rule. Each rule is one query that reads one table, or both."""
    for table in tables.values():
        if not table.found.is_readable:
            reason = f"{table.catalogue.role} may not read it, so its rows were not looked at."
            yield AdoptionObject(f"{table.found.name}: rows", "rows", Verdict.MUST_CHANGE, reason)
            continue
        for rule in _rules(table, tables):
            if rule.needs <= table.found.columns.keys():
                found = _look(connection, table, rule)
                if found is not None:
                    yield found


def _look(connection: Connection, table: Compared, rule: _Rule) -> AdoptionObject | None:
    query = f"SELECT count(*) OVER () AS number, broken.* FROM ({rule.query}) AS broken LIMIT {_FIRST}"  # noqa: S608
    rows = connection.execute(as_it_is(query)).mappings().all()
    if not rows:
        return None
    first = tuple(", ".join(f"{name} {row[name]}" for name in row if name != "number") for row in rows)
    return AdoptionObject(
        name=f"{table.found.name}: {rule.name}",
        kind="rows",
        verdict=Verdict.MUST_CHANGE if rule.blocks else Verdict.ACCEPTABLE,
        reason=rule.reason,
        rows=BrokenRows(int(rows[0]["number"]), f"{rule.query};", first),
    )


def _rules(table: Compared, tables: Mapping[str, Compared]) -> Iterator[_Rule]:
    yield from _null_rules(table)
    yield from _conversion_rules(table)
    yield from _key_rules(table)
    if table.is_audit and process.name in tables:
        yield from _link_rules(table)
    yield from _check_rules(table)


def _select(table: Compared, condition: str) -> str:
    names = listed(name for name in _NAMES[table.found.name] if name in table.found.columns)
    return f"SELECT {names or 'ctid'} FROM {table.name} WHERE {condition}"  # noqa: S608 - quoted names


def _null_rules(table: Compared) -> Iterator[_Rule]:
    for name, expected in table.expected.columns.items():
        found = table.found.columns.get(name)
        if found is not None and found.is_nullable and not expected.is_nullable:
            yield _Rule(
                f"{name} is NULL",
                "The column cannot become NOT NULL before each row has a value.",
                frozenset({name}),
                _select(table, f"{quoted(name)} IS NULL"),
                blocks=True,
            )


def _conversion_rules(table: Compared) -> Iterator[_Rule]:
    for name, expected in table.expected.columns.items():
        found = table.found.columns.get(name)
        if found is None:
            continue
        limit = expected.type.removeprefix("character varying(").removesuffix(")")
        if limit.isdigit() and found.type.startswith(("text", "character varying")) and found.type != expected.type:
            yield _Rule(
                f"{name} is longer than {limit} characters",
                "The library cannot read such a row.",
                frozenset({name}),
                _select(table, f"char_length({quoted(name)}) > {limit}"),
                blocks=False,
            )
        if table.catalogue.server >= _HAS_INPUT_IS_VALID and converts(found, expected.type):
            yield _Rule(
                f"{name} cannot become {expected.type}",
                "The value of the column cannot be converted.",
                frozenset({name}),
                _select(table, f"NOT pg_input_is_valid({quoted(name)}::text, '{expected.type}')"),
                blocks=True,
            )


def _key_rules(table: Compared) -> Iterator[_Rule]:
    keys = [table.expected.primary_key[1]]
    if table.is_audit:
        keys.append(next(iter(expected_layouts()[-1][process_audit.name].unique.values())))
    for columns in keys:
        if is_unique_on(table, columns):
            continue
        names = listed(columns)
        shown = f"{names}, array_agg({quoted('id')} ORDER BY id) AS ids" if table.is_audit else f"{names}, count(*)"
        yield _Rule(
            f"several rows with the same {', '.join(columns)}",
            "Keep one of them.",
            frozenset({*columns, *(["id"] if table.is_audit else [])}),
            f"SELECT {shown} FROM {table.name} GROUP BY {names} HAVING count(*) > 1",  # noqa: S608 - quoted names
            blocks=True,
        )


def _link_rules(table: Compared) -> Iterator[_Rule]:
    if any(each.kind == "f" and each.references == process.name and each.is_valid and each.is_enforced
           for each in table.found.constraints):  # fmt: skip
        return
    names = listed(name for name in _NAMES[process_audit.name] if name in table.found.columns)
    parent = quoted(table.catalogue.schema, process.name)
    yield _Rule(
        "steps without a process",
        "The foreign key refuses them. Delete them, or insert their process.",
        frozenset({"domain", "process_id"}),
        f"SELECT {names} FROM {table.name} AS step WHERE NOT EXISTS (SELECT FROM {parent} AS process "  # noqa: S608
        "WHERE process.domain::text = step.domain::text AND process.process_id::text = step.process_id::text)",
        blocks=True,
    )


_STATUSES, _OUTCOMES = ("'{" + ",".join(each) + "}'" for each in (ProcessStatus, ReplyOutcome))
# The rows that break each CHECK. The casts are for columns of other types.
_BROKEN = {
    "process_status_known": ({"status"}, f"status::text <> ALL ({_STATUSES}::text[])"),
    "process_version_positive": ({"version"}, "version < 1"),
    "process_audit_reply_check": (
        {"reply_outcome", "received_at"},
        "(reply_outcome IS NULL) <> (received_at IS NULL)",
    ),
    "process_audit_outcome_known": ({"reply_outcome"}, f"reply_outcome::text <> ALL ({_OUTCOMES}::text[])"),
    "process_audit_data_with_outcome": (
        {"reply_outcome", "reply_data"},
        "reply_outcome IS NULL AND reply_data::text <> 'null'",
    ),
    "process_audit_compensates_another": (
        {"compensates", "command_id"},
        "compensates::text = command_id::text",
    ),
}
_NUMBERS = frozenset({"smallint", "integer", "bigint", "numeric"})
_STRICT = frozenset({"process_audit_reply_check"})
"""CHECKs that their revision makes valid at once. The others are NOT VALID on tables with rows."""


def _check_rules(table: Compared) -> Iterator[_Rule]:
    for name, definition in table.newest.checks.items():
        in_force = [
            each for each in table.found.constraints if each.kind == "c" and matches(each.definition, definition)
        ]
        if any(each.is_valid and each.is_enforced for each in in_force):
            continue
        needs, condition = _BROKEN[name]
        version = table.found.columns.get("version")
        if "version" in needs and version is not None and version.type not in _NUMBERS:
            continue  # it must become a number first
        # Once the revision has made it, somebody has left it NOT VALID, and it stays so.
        blocks = name in _STRICT and name not in table.expected.checks
        reason = (
            "The revision refuses them. Complete or empty them."
            if blocks
            else "They can be read. An UPDATE of such a row must correct it. Correct them, and validate the CHECK."
        )
        yield _Rule(f"rows that break {name}", reason, frozenset(needs), _select(table, condition), blocks=blocks)
