"""Compare keys, CHECKs and indexes, whatever their names are, and look at names that a later revision needs."""

import re
from collections.abc import Iterator

from commandbus_process.migrations._history import KNOWN
from commandbus_process.migrations.adoption._catalogue import FoundConstraint, FoundIndex
from commandbus_process.migrations.adoption._verdicts import (
    AdoptionObject,
    Compared,
    acceptable,
    drop_links,
    listed,
    locked,
    must_change,
    quoted,
    same,
)
from commandbus_process.tables import process, process_audit

_KEYS = {
    process.name: frozenset({"domain", "process_id"}),
    process_audit.name: frozenset({"domain", "process_id", "command_id"}),
}
"""What tells one row from another. A unique index that has all of it refuses nothing more."""
_OWN_RULES = frozenset({"id", "business_key"})
_KEPT_IF_READY = frozenset({"process_audit_reply_check"})
"""CHECKs of a later revision which that revision keeps if they are valid."""
_BUILT_AGAIN = frozenset({"idx_process_deadline", "idx_process_business_key"})
"""Indexes of a later revision which that revision builds again if they are not valid."""


def compare_constraints(table: Compared, *, key_changes_type: bool) -> Iterator[AdoptionObject]:
    """Compare the keys, the CHECKs and the indexes of a table."""
    yield _primary_key(table)
    for name, columns in table.expected.unique.items():
        yield _unique_key(table, name, columns)
    for name, columns in table.expected.foreign.items():
        yield _foreign_key(table, name, columns, key_changes_type=key_changes_type)
    for name, definition in table.expected.checks.items():
        yield _check(table, name, definition)
    for name, definition in table.expected.indexes.items():
        yield _index(table, name, definition)
    yield from _others(table)


def matches(found: str, expected: str) -> bool:
    """Whether two CHECKs are the same. How many parentheses and casts they have depends on the columns' types."""
    return _bare(found) == _bare(expected)


def _bare(definition: str) -> str:
    return re.sub(r"::(text|character varying)(\[\])?|[()\s]|NOT ENFORCED", "", definition)


def is_unique_on(table: Compared, columns: tuple[str, ...]) -> bool:
    """Whether a valid unique index refuses two rows with the same values in these columns."""
    return any(
        index.is_unique and index.is_valid and "WHERE" not in index.definition and set(index.columns) <= set(columns)
        for index in table.found.indexes
    )


def _primary_key(table: Compared) -> AdoptionObject:
    name, columns = table.expected.primary_key
    found = table.found.primary_key()
    kind = "primary key"
    build, add = _key_by_index(table, name, "PRIMARY KEY", columns)
    is_replaced = table.number < len(KNOWN) - 1 and table.newest.primary_key[1] != columns
    if found is None:
        if not table.is_audit and any(_serves_as_key(each, columns) for each in table.found.constraints):
            return acceptable(table.member(name), kind, "There is a unique key instead.")
        return must_change(table.member(name), kind, "It is missing.", build, table.alter(add))
    if is_replaced:
        return _replaced_key(table, found)
    reasons: list[str] = []
    if set(found.columns) != set(columns):
        reasons.append(f"It is on ({listed(found.columns)}), not on ({listed(columns)}).")
        by_others = [f"{each.name} of {each.table}" for each in table.found.foreign if each.uses_primary_key]
        if by_others:
            reasons.append(f"Drop the foreign keys that refer to it first: {', '.join(by_others)}.")
    if found.is_deferrable:
        reasons.append("It is deferrable. ON CONFLICT takes no such key.")
    if reasons:
        first = () if table.is_audit else drop_links(table.catalogue)
        replace = table.alter(f"DROP CONSTRAINT {quoted(found.name)}", add)
        statements = locked(table.catalogue, *first, replace)
        return must_change(table.member(found.name), kind, " ".join(reasons), build, *statements)
    if found.columns != columns:
        reasons.append("Its columns have another order, which serves the same rows.")
    if found.name != name:
        reasons.append("It has another name, and no revision needs its name.")
    return _fine(table.member(found.name), kind, reasons)


def _key_by_index(table: Compared, name: str, kind: str, columns: tuple[str, ...]) -> tuple[str, str]:
    """Return what builds the index of a key, while everybody goes on writing, and the action that makes it a key."""
    free = quoted(table.aside(name, "_new"))
    build = f"CREATE UNIQUE INDEX CONCURRENTLY {free} ON {table.name} ({listed(columns)})"
    return build, f"ADD CONSTRAINT {quoted(name)} {kind} USING INDEX {free}"


def _fine(member: str, kind: str, reasons: list[str]) -> AdoptionObject:
    return acceptable(member, kind, " ".join(reasons)) if reasons else same(member, kind)


def _replaced_key(table: Compared, found: FoundConstraint) -> AdoptionObject:
    """Judge a primary key that the next revision drops, whatever it is."""
    columns = table.expected.primary_key[1]
    member, kind = table.member(found.name), "primary key"
    others = [each for each in table.found.foreign if each.uses_primary_key]
    if others:
        names = ", ".join(f"{each.name} of {each.table}" for each in others)
        return must_change(
            member,
            kind,
            f"Revision {KNOWN[table.number + 1]} replaces it, and {names} refers to it. Drop that key first. "
            f"After the upgrade, make a unique key on ({listed(found.columns)}), and the foreign key again.",
            *(f"ALTER TABLE {each.table} DROP CONSTRAINT {quoted(each.name)}" for each in others),
        )
    if found.columns != columns or found.name != table.expected.primary_key[0]:
        return acceptable(member, kind, f"Revision {KNOWN[table.number + 1]} replaces it, whatever it is.")
    return same(member, kind)


def _serves_as_key(found: FoundConstraint, columns: tuple[str, ...]) -> bool:
    return found.kind == "u" and set(found.columns) == set(columns) and not found.is_deferrable


def _unique_key(table: Compared, name: str, columns: tuple[str, ...]) -> AdoptionObject:
    member, kind = table.member(name), "unique key"
    build, add = _key_by_index(table, name, "UNIQUE", columns)
    named = next((each for each in table.found.constraints if each.name == name), None)
    if named is not None:
        if _serves_as_key(named, columns):
            return same(member, kind)
        reason = f"It is {named.definition}."
        return must_change(member, kind, reason, build, table.alter(f"DROP CONSTRAINT {quoted(name)}", add))
    for each in table.found.constraints:
        if _serves_as_key(each, columns):
            rename = f"RENAME CONSTRAINT {quoted(each.name)} TO {quoted(name)}"
            return must_change(member, kind, f"Its name is {each.name}.", table.alter(rename))
    return must_change(member, kind, "It is missing. Redelivery is harmless because of it.", build, table.alter(add))


def _foreign_key(table: Compared, name: str, columns: tuple[str, ...], *, key_changes_type: bool) -> AdoptionObject:
    kind = "foreign key"
    audit = table.name
    referenced = f"{quoted(table.catalogue.schema, process.name)} ({listed(columns)})"
    definition = f"FOREIGN KEY ({listed(columns)}) REFERENCES {referenced}"
    add = f"ALTER TABLE {audit} ADD CONSTRAINT {quoted(name)} {definition} NOT VALID"
    # By itself: the rows are read while everybody goes on writing.
    validate = f"ALTER TABLE {audit} VALIDATE CONSTRAINT {quoted(name)}"
    found = next((each for each in table.found.constraints if _is_link(each, columns)), None)
    if found is None:
        statements = locked(table.catalogue, *drop_links(table.catalogue), add)
        return must_change(table.member(name), kind, "It is missing.", *statements, validate)
    member = table.member(found.name)
    replace = (*locked(table.catalogue, *drop_links(table.catalogue), add), validate)
    if key_changes_type:
        return must_change(member, kind, "The statements above drop it, because its columns change.", *replace)
    if not found.is_enforced or found.on_delete in "nd" or found.on_update in "nd":
        return must_change(member, kind, f"It is {found.definition}.", *replace)
    if not found.is_valid:
        validate = f"ALTER TABLE {audit} VALIDATE CONSTRAINT {quoted(found.name)}"
        return must_change(member, kind, "It is NOT VALID.", validate)
    if "INITIALLY DEFERRED" in found.definition:
        reason = "It is checked at the end of the transaction only. The library must know at once."
        change = f"ALTER TABLE {audit} ALTER CONSTRAINT {quoted(found.name)} NOT DEFERRABLE"
        return must_change(member, kind, reason, *locked(table.catalogue, change))
    reasons: list[str] = []
    if found.on_delete == "c":
        reasons.append("A DELETE of a process deletes its steps, too. The library deletes them first.")
    if found.on_update == "c":
        reasons.append("A change of a key changes the steps, too. The library changes no key.")
    if found.is_deferrable:
        reasons.append("It is deferrable, and checked at once unless somebody defers it.")
    if found.name != name:
        reasons.append("It has another name, and no revision needs its name.")
    return _fine(member, kind, reasons)


def _is_link(found: FoundConstraint, columns: tuple[str, ...]) -> bool:
    pairs = set(zip(found.columns, found.referenced_columns, strict=False))
    return found.kind == "f" and found.references == process.name and pairs == {(each, each) for each in columns}


def _check(table: Compared, name: str, definition: str) -> AdoptionObject:
    member, kind = table.member(name), "CHECK"
    named = next((each for each in table.found.constraints if each.name == name), None)
    add = f"ADD CONSTRAINT {quoted(name)} {definition} NOT VALID"
    if named is not None:
        if named.kind != "c" or not matches(named.definition, definition) or not named.is_enforced:
            replace = table.alter(f"DROP CONSTRAINT {quoted(name)}", add)
            return must_change(member, kind, f"It is {named.definition}.", replace)
        if not named.is_valid:
            return acceptable(member, kind, "It is NOT VALID. It holds for each row that is written from now on.")
        return same(member, kind)
    for each in table.found.constraints:
        if each.kind == "c" and matches(each.definition, definition) and each.is_enforced:
            rename = f"RENAME CONSTRAINT {quoted(each.name)} TO {quoted(name)}"
            return must_change(member, kind, f"Its name is {each.name}.", table.alter(rename))
    return must_change(member, kind, "It is missing.", table.alter(add))


def _index(table: Compared, name: str, definition: str) -> AdoptionObject:
    member, kind = table.member(name), "index"
    named = next((each for each in table.found.indexes if each.name == name), None)
    alike = [each for each in table.found.indexes if each.definition == definition and each.is_valid]
    if named is not None and named in alike:
        return same(member, kind)
    if name not in table.newest.indexes:
        reason = "It is missing. A later revision would drop it."
        if named is not None:
            reason = "It is another index. A later revision drops it."
        elif alike:
            reason = f"Its name is {alike[0].name}. It stays, although nothing needs it later."
        return acceptable(member, kind, reason)
    create = f"CREATE INDEX CONCURRENTLY {quoted(name)} ON {table.name} USING {definition}"
    if named is not None:
        drop = f"DROP INDEX CONCURRENTLY {quoted(table.catalogue.schema, name)}"
        if named.is_of_constraint:
            drop = table.alter(f"DROP CONSTRAINT {quoted(name)}")
        reason = "It is another index." if named.is_valid else "It was not built to its end."
        return must_change(member, kind, reason, drop, create)
    renamed = next((each for each in alike if not each.is_unique), None)
    if renamed is not None:
        rename = f"ALTER INDEX {quoted(table.catalogue.schema, renamed.name)} RENAME TO {quoted(name)}"
        return must_change(member, kind, f"Its name is {renamed.name}.", rename)
    return must_change(member, kind, "It is missing. It cannot be built in a transaction.", create)


def _others(table: Compared) -> Iterator[AdoptionObject]:
    """Look at what the revision does not make."""
    expected = table.expected
    for constraint in table.found.constraints:
        is_expected = constraint.name in {*expected.unique, *expected.checks} or constraint.kind == "p"
        is_renamed = constraint.kind == "c" and any(
            matches(constraint.definition, each) and name not in {c.name for c in table.found.constraints}
            for name, each in expected.checks.items()
        )
        is_link = constraint.kind == "f" and constraint.references == process.name and table.is_audit
        if is_expected or is_renamed or is_link or constraint.kind in "ux":
            continue  # those of indexes come below
        yield _other_check(table, constraint) if constraint.kind == "c" else _other_foreign_key(table, constraint)
    key = table.found.primary_key()
    for index in table.found.indexes:
        is_renamed_key = index.is_of_constraint and any(
            set(index.columns) == set(columns) for columns in expected.unique.values()
        )
        if index.name in {*expected.indexes, *expected.unique} or (key and key.name == index.name) or is_renamed_key:
            continue
        yield _other_index(table, index)


def _other_check(table: Compared, found: FoundConstraint) -> AdoptionObject:
    member, kind = table.member(found.name), "CHECK"
    later = table.added_by("checks", found.name)
    if later is not None:
        if found.name not in _KEPT_IF_READY or not matches(found.definition, table.newest.checks[found.name]):
            reason = f"Revision {later} makes a CHECK of this name."
            return must_change(member, kind, reason, table.alter(f"DROP CONSTRAINT {quoted(found.name)}"))
        if not found.is_valid:
            reason = f"Revision {later} keeps it if it is valid."
            return must_change(member, kind, reason, table.alter(f"VALIDATE CONSTRAINT {quoted(found.name)}"))
        return acceptable(member, kind, f"Revision {later} makes it, and keeps the one that is there.")
    if found.refuses:
        return must_change(
            member,
            kind,
            f"It refuses {', '.join(found.refuses)}, which the library may write.",
            table.alter(f"DROP CONSTRAINT {quoted(found.name)}"),
        )
    return acceptable(member, kind, "A rule of your own. A row that it refuses raises IntegrityError with its name.")


def _other_foreign_key(table: Compared, found: FoundConstraint) -> AdoptionObject:
    member, kind = table.member(found.name), "foreign key"
    if set(found.columns) <= table.newest.columns.keys():
        return must_change(
            member,
            kind,
            f"It refers to {found.references}, of which the library knows nothing. Its INSERTs would fail.",
            table.alter(f"DROP CONSTRAINT {quoted(found.name)}"),
        )
    return acceptable(member, kind, "A rule of your own, about a column of your own.")


def _other_index(table: Compared, found: FoundIndex) -> AdoptionObject:
    member, kind = table.member(found.name), "index"
    named = quoted(table.catalogue.schema, found.name)
    later = table.added_by("indexes", found.name)
    if later is not None and found.definition == table.newest.indexes[found.name]:
        if found.is_valid or found.name in _BUILT_AGAIN:
            return acceptable(member, kind, f"Revision {later} makes it, and keeps it if it is complete.")
        reason = "It was not built to its end."
        return must_change(member, kind, reason, f"DROP INDEX CONCURRENTLY {named}")
    # Not its own columns: those of the key that a later revision makes.
    is_needed = found.name in table.newest.names() - table.expected.names() or (
        table.is_audit and found.name == table.newest.primary_key[0]
    )
    if is_needed:
        reason = "A later revision needs this name."
        rename = f"ALTER INDEX {named} RENAME TO {quoted(table.aside(found.name))}"
        return must_change(member, kind, reason, rename)
    if found.is_unique and found.is_valid and _refuses_more(table, found):
        drop = table.alter(f"DROP CONSTRAINT {quoted(found.name)}") if found.is_of_constraint else f"DROP INDEX {named}"
        return must_change(member, kind, "It is unique, and refuses rows that the library may write.", drop)
    if "updated_at" in found.columns:
        reason = "Each update changes updated_at, so with this index no update stays on its page (HOT)."
        return acceptable(member, kind, reason)
    return acceptable(member, kind, "An index of your own.")


def _refuses_more(table: Compared, found: FoundIndex) -> bool:
    columns = set(found.columns)
    if columns >= _KEYS[table.found.name] or columns & _OWN_RULES or None in columns:
        return False
    return columns <= table.newest.columns.keys()
