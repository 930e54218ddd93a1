"""Compare columns: types, nullability, defaults, and what numbers the entries of the audit trail."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from commandbus_process.migrations.adoption._catalogue import FoundColumn
from commandbus_process.migrations.adoption._expected import ExpectedColumn
from commandbus_process.migrations.adoption._verdicts import (
    AdoptionObject,
    Compared,
    Verdict,
    acceptable,
    drop_links,
    links,
    locked,
    must_change,
    quoted,
    same,
)
from commandbus_process.tables import process_audit

_KEY = frozenset({"domain", "process_id"})
_NUMBER = "id"
_ITS_SEQUENCE = f"{process_audit.name}_id_seq"
_STRINGS = re.compile(r"text|character varying(\(\d+\))?|character(\(\d+\))?")
# The library writes no value for these, so their default is what is stored.
_LEFT_TO_THE_DEFAULT = frozenset({"version", "state_version"})
# The revision adds these with IF NOT EXISTS.
_ADDED_IF_MISSING = frozenset({"business_key", "deadline", "state_version"})
_NUMBERS = {"smallint", "integer", "bigint", "numeric"}
_CONVERTED_FROM = {
    "uuid": set[str](),
    "jsonb": {"json"},
    "timestamp with time zone": {"date"},
    "bigint": _NUMBERS,
    "integer": _NUMBERS,
}
"""Types that can be converted, besides strings. Everything can be converted to a string."""


class _Finding(NamedTuple):
    verdict: Verdict
    reason: str = ""
    actions: tuple[str, ...] = ()
    changes_type: bool = False


_SAME = _Finding(Verdict.SAME)


def compare_columns(table: Compared) -> Iterator[AdoptionObject]:
    """Compare the columns that the revision has, and look at those that it has not."""
    for name, expected in table.expected.columns.items():
        found = table.found.columns.get(name)
        yield _missing(table, name, expected) if found is None else _compare(table, found, expected)
    for name, found in table.found.columns.items():
        if name not in table.expected.columns:
            yield _extra(table, found)


def key_changes_type(tables: Iterable[Compared]) -> bool:
    """Whether a column of the key must change its type. A foreign key between the tables is in the way then."""
    return any(
        _judge_type(column, table.expected.columns[column.name]).changes_type
        for table in tables
        for column in table.found.columns.values()
        if column.name in _KEY and column.name in table.expected.columns
    )


def is_column_of_later(table: Compared, name: str) -> bool:
    """Whether a column that the revision has not is one that a later revision makes, and would fail to make."""
    found = table.found.columns[name]
    if name in table.expected.columns or name not in table.newest.columns or name in _ADDED_IF_MISSING:
        return False
    return _judge_type(found, table.newest.columns[name]).verdict is not Verdict.MUST_CHANGE


def converts(column: FoundColumn, wanted: str) -> bool:
    """Whether the values must be converted to get this type, and a value can be one that has no counterpart."""
    finding, _ = _judge(column.type, wanted)
    return finding is Verdict.MUST_CHANGE and wanted in _CONVERTED_FROM and _CONVERTED_FROM[wanted] is not _NUMBERS


def _compare(table: Compared, found: FoundColumn, expected: ExpectedColumn) -> AdoptionObject:
    name, kind = table.member(found.name), "column"
    if found.generated:
        return _generated(table, found, expected)
    in_type = _judge_type(found, expected)
    if in_type.verdict is Verdict.MUST_CHANGE and not in_type.actions:
        return must_change(name, kind, in_type.reason)
    is_number = table.is_audit and found.name == _NUMBER
    in_default = _SAME if is_number else _judge_default(found, expected)
    findings = [in_type, _judge_nullability(found, expected), in_default]
    actions = [action for finding in findings for action in finding.actions]
    statements = [table.alter(*actions)] if actions else []
    if in_type.changes_type and found.name in _KEY and links(table.catalogue):
        statements = [*locked(table.catalogue, *drop_links(table.catalogue), *statements)]
    if is_number:
        numbered, more = _judge_numbers(table, found)
        findings.append(numbered)
        statements += more
    reason = " ".join(finding.reason for finding in findings if finding.reason)
    verdicts = {finding.verdict for finding in findings}
    if Verdict.MUST_CHANGE in verdicts:
        if in_type.changes_type and found.used_by:
            reason += f" It is used by {', '.join(found.used_by)}: drop this first, and create it again afterwards."
        return must_change(name, kind, reason, *statements)
    return acceptable(name, kind, reason) if Verdict.ACCEPTABLE in verdicts else same(name, kind)


def _missing(table: Compared, name: str, expected: ExpectedColumn) -> AdoptionObject:
    definition = f"{quoted(name)} {expected.type}"
    if table.is_audit and name == _NUMBER:
        return must_change(
            table.member(name),
            "column",
            "It is missing. The statement numbers the rows as they lie in the table, which need not be the order in "
            "which they were logged. It rewrites the table.",
            table.alter(f"ADD COLUMN {definition} GENERATED BY DEFAULT AS IDENTITY"),
        )
    if expected.default is not None:
        definition += f" NOT NULL DEFAULT {expected.default}"
    reason = "It is missing."
    if not expected.is_nullable and expected.default is None:
        reason += " Only you know its value in each row. Add it, fill it, and run adopt again."
    return must_change(table.member(name), "column", reason, table.alter(f"ADD COLUMN {definition}"))


def _extra(table: Compared, found: FoundColumn) -> AdoptionObject:
    name, kind = table.member(found.name), "column"
    later = table.added_by("columns", found.name)
    if later is not None:
        wanted = table.newest.columns[found.name]
        in_type = _judge_type(found, wanted)
        if in_type.verdict is Verdict.MUST_CHANGE or found.generated or found.name not in _ADDED_IF_MISSING:
            aside = table.aside(found.name)
            return must_change(
                name,
                kind,
                f"Revision {later} makes a column of this name.",
                table.alter(f"RENAME COLUMN {quoted(found.name)} TO {quoted(aside)}"),
            )
        findings = [in_type, _judge_nullability(found, wanted), _judge_default(found, wanted)]
        actions = [action for finding in findings for action in finding.actions]
        reasons = [f"Revision {later} makes this column, and keeps the one that is there."]
        reasons += [finding.reason for finding in findings if finding.reason]
        if actions:
            return must_change(name, kind, " ".join(reasons), table.alter(*actions))
        return acceptable(name, kind, " ".join(reasons))
    if found.is_nullable or found.default is not None or found.identity or found.generated or found.sequence:
        return acceptable(name, kind, "A column of your own. The library does not write it.")
    return must_change(
        name,
        kind,
        "A column of your own without a default that is NOT NULL. The library does not write it, so its INSERTs would "
        "fail. Give it a default instead, if you like.",
        table.alter(f"ALTER COLUMN {quoted(found.name)} DROP NOT NULL"),
    )


def _generated(table: Compared, found: FoundColumn, expected: ExpectedColumn) -> AdoptionObject:
    column = quoted(found.name)
    reason = "It is a generated column. The library writes it."
    if found.generated == "s":
        return must_change(
            table.member(found.name), "column", reason, table.alter(f"ALTER COLUMN {column} DROP EXPRESSION")
        )
    aside = quoted(table.aside(found.name))
    return must_change(
        table.member(found.name),
        "column",
        f"{reason} A virtual one cannot become a plain one, so it gets another name.",
        table.alter(f"RENAME COLUMN {column} TO {aside}"),
        table.alter(f"ADD COLUMN {column} {expected.type}"),
        f"UPDATE {table.name} SET {column} = {aside}",  # noqa: S608 - quoted names
    )


def _judge_type(found: FoundColumn, expected: ExpectedColumn) -> _Finding:
    verdict, reason = _judge(found.type, expected.type)
    type_ = expected.type if verdict is Verdict.MUST_CHANGE else found.type
    using = _conversion(found, expected.type) if verdict is Verdict.MUST_CHANGE else ""
    if using is None:
        return _Finding(verdict, f"{reason} PostgreSQL cannot convert the one to the other.", changes_type=True)
    if found.domain is not None:
        if found.domain_has_rules:
            verdict = Verdict.MUST_CHANGE
            reason += f" Its type is the domain {found.domain}, which refuses values that the library may write."
        elif verdict is Verdict.SAME:
            verdict, reason = (
                Verdict.ACCEPTABLE,
                f"Its type is the domain {found.domain}, which stands for {found.type}.",
            )
    if not found.is_deterministic:
        verdict = Verdict.MUST_CHANGE
        reason += (
            f" Its collation {found.collation} is not deterministic: different texts count as equal, and two domains "
            "or statuses as one."
        )
        type_ += ' COLLATE pg_catalog."default"'
    elif found.collation is not None and verdict is Verdict.SAME:
        verdict, reason = Verdict.ACCEPTABLE, f"Its collation is {found.collation}. The library sorts by no text."
    if verdict is not Verdict.MUST_CHANGE:
        return _Finding(verdict, reason.strip())
    column = f"ALTER COLUMN {quoted(found.name)}"
    change = f"{column} TYPE {type_}{using}"
    if expected.default is None:
        return _Finding(verdict, reason.strip(), (change,), changes_type=True)
    # PostgreSQL may not know how to convert the default.
    actions = (f"{column} DROP DEFAULT", change, f"{column} SET DEFAULT {expected.default}")
    return _Finding(verdict, reason.strip(), actions, changes_type=True)


def _judge(found: str, wanted: str) -> tuple[Verdict, str]:
    """Compare two types, as `format_type` writes them."""
    limit = re.fullmatch(r"character varying\((\d+)\)", wanted)
    if found == wanted:
        return Verdict.SAME, ""
    if limit is not None and found in {"text", "character varying"}:
        return Verdict.ACCEPTABLE, f"It is {found}. The library writes at most {limit[1]} characters."
    length = re.fullmatch(r"character varying\((\d+)\)", found)
    if limit is not None and length is not None:
        if int(length[1]) > int(limit[1]):
            return Verdict.ACCEPTABLE, f"It is longer. The library writes at most {limit[1]} characters."
        return Verdict.MUST_CHANGE, f"It takes {length[1]} characters only. The library may write {limit[1]}."
    if (found, wanted) in {("integer", "bigint"), ("bigint", "integer"), ("character varying", "text")}:
        ends = " INSERT fails once it has reached 2147483647." if found == "integer" else ""
        return Verdict.ACCEPTABLE, f"It is {found} instead of {wanted}.{ends}"
    reason = f"It is {found}, not {wanted}."
    if wanted == "timestamp with time zone":
        if "with time zone" in found:
            reason += " The library would not find again what it has written."
        elif found.startswith(("timestamp", "date")):
            reason += (
                " It does not say in which zone. Write the zone of the programs that have filled it instead of UTC."
            )
        reason += " The statement rewrites the table."
    elif wanted in _CONVERTED_FROM:
        reason += " The statement rewrites the table."
    return Verdict.MUST_CHANGE, reason


def _conversion(found: FoundColumn, wanted: str) -> str | None:
    """Return the USING clause that converts a column; `None` if there is no conversion."""
    column = quoted(found.name)
    if wanted == "timestamp with time zone" and found.type.startswith(("timestamp", "date")):
        if "with time zone" in found.type:
            return ""
        return f" USING {column}::timestamp AT TIME ZONE 'UTC'"
    if wanted in _CONVERTED_FROM and not _STRINGS.fullmatch(found.type) and found.type not in _CONVERTED_FROM[wanted]:
        return None
    return f" USING {column}::{wanted}"


def _judge_nullability(found: FoundColumn, expected: ExpectedColumn) -> _Finding:
    column = f"ALTER COLUMN {quoted(found.name)}"
    if found.is_nullable and not expected.is_nullable:
        return _Finding(Verdict.MUST_CHANGE, "It must be NOT NULL.", (f"{column} SET NOT NULL",))
    if expected.is_nullable and not found.is_nullable:
        reason = "It is NOT NULL. The library writes NULL."
        return _Finding(Verdict.MUST_CHANGE, reason, (f"{column} DROP NOT NULL",))
    return _SAME


def _plain(default: str | None) -> str | None:
    """Return a default without its type. CURRENT_TIMESTAMP is now()."""
    if default is None:
        return None
    without = re.sub(r"::[\w \"().]+$", "", default)
    return "now()" if without == "CURRENT_TIMESTAMP" else without


def _judge_default(found: FoundColumn, expected: ExpectedColumn) -> _Finding:
    if _plain(found.default) == _plain(expected.default) and found.sequence is None and not found.identity:
        return _SAME
    if found.name not in _LEFT_TO_THE_DEFAULT:
        if found.identity == "a":
            drop = f"ALTER COLUMN {quoted(found.name)} DROP IDENTITY"
            return _Finding(Verdict.MUST_CHANGE, "It is an identity. The library writes it.", (drop,))
        given = "no default" if found.default is None and not found.identity else "another default"
        return _Finding(Verdict.ACCEPTABLE, f"It has {given}. The library always writes it.")
    column = f"ALTER COLUMN {quoted(found.name)}"
    actions = [f"{column} DROP IDENTITY"] if found.identity else []
    actions.append(f"{column} DROP DEFAULT" if expected.default is None else f"{column} SET DEFAULT {expected.default}")
    return _Finding(Verdict.MUST_CHANGE, "It must have the revision's default.", tuple(actions))


def _judge_numbers(table: Compared, found: FoundColumn) -> tuple[_Finding, list[str]]:
    """Judge what numbers the entries: they are read in the order of their numbers."""
    column = f"ALTER COLUMN {quoted(found.name)}"
    largest = f"(SELECT coalesce(max({quoted(found.name)}), 0) + 1 FROM {table.name})"  # noqa: S608 - quoted names
    sequence = found.sequence
    if sequence is None:
        # An own name: a sequence that fed the column before may have the usual one, and still be there.
        free = quoted(table.catalogue.schema, table.aside(table.found.name, "_numbers"))
        actions = [f"{column} DROP DEFAULT"] if found.default is not None else []
        actions.append(f"{column} ADD GENERATED BY DEFAULT AS IDENTITY (SEQUENCE NAME {free})")
        statements = [table.alter(*actions), f"SELECT setval({_literal(free)}, {largest}, false)"]
        return _Finding(Verdict.MUST_CHANGE, "No sequence numbers the entries."), statements
    name = quoted(sequence.schema, sequence.name)
    reasons: list[str] = []
    options: list[str] = []
    if sequence.increment < 0:
        reasons.append("Its sequence counts down, and the trail is read in the order of the numbers.")
        options.append("INCREMENT BY 1 NO MINVALUE NO MAXVALUE")
    if sequence.cycles:
        reasons.append("Its sequence begins again at its end.")
        options.append("NO CYCLE")
    if sequence.cache > 1:
        reasons.append(
            "Each session takes several numbers of its sequence at once, so they are not in the order of logging."
        )
        options.append("CACHE 1")
    statements = [f"ALTER SEQUENCE {name} {' '.join(options)}"] if options else []
    if sequence.is_behind or sequence.increment < 0:
        reasons.append("Its sequence must be beyond the largest number, or it gives one a second time.")
        statements.append(f"SELECT setval({_literal(name)}, {largest}, false)")
    if statements:
        return _Finding(Verdict.MUST_CHANGE, " ".join(reasons)), statements
    if found.identity:
        return _Finding(Verdict.ACCEPTABLE, "It is an identity instead of bigserial, and needs no grant."), []
    if (sequence.schema, sequence.name) != (table.catalogue.schema, _ITS_SEQUENCE):
        return _Finding(Verdict.ACCEPTABLE, f"Its sequence is {name}. The grants find it."), []
    return _SAME, []


def _literal(value: str) -> str:
    doubled = value.replace("'", "''")
    return f"'{doubled}'"
