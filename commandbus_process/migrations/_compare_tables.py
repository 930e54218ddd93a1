"""Compare the tables themselves: what they are, whose they are, and what else runs when somebody writes."""

from collections.abc import Iterator

from commandbus_process.migrations._catalogue import Catalogue, FoundTable
from commandbus_process.migrations._expected import expected_layouts
from commandbus_process.migrations._verdicts import AdoptionObject, Compared, acceptable, must_change, quoted, same

_GUARDS = {"guard_process", "guard_process_audit"}


def compare_schema(catalogue: Catalogue) -> Iterator[AdoptionObject]:
    """Look at the schema, and at names in it that a revision needs."""
    if not catalogue.may_create:
        grant = f"GRANT CREATE ON SCHEMA {quoted(catalogue.schema)} TO {quoted(catalogue.role)}"
        yield must_change(catalogue.schema, "schema", f"{catalogue.role} may create nothing in it.", grant)
    names = {name for table in expected_layouts()[-1].values() for name in table.names() - table.checks.keys()}
    for name, kind in sorted(catalogue.others.items()):
        if name in names:
            alter = "INDEX" if kind == "index" else "TYPE" if kind == "type" else "TABLE"
            rename = f"ALTER {alter} {quoted(catalogue.schema, name)} RENAME TO {quoted(name + '_before')}"
            yield must_change(name, kind, "A revision needs this name for an index.", rename)


def compare_stamp(catalogue: Catalogue, revision: str) -> Iterator[AdoptionObject]:
    """Compare the revision in the version table, if there is one."""
    stamped = catalogue.stamped
    if stamped is None:
        return
    if revision.endswith(stamped) or stamped.endswith(revision):  # the ids once had no prefix
        yield same(stamped, "revision")
    else:
        reason = f"The version table says {stamped}, and the tables are nearest to {revision}. Stamp it anew."
        yield acceptable(stamped, "revision", reason)


def stands_in(table: FoundTable) -> AdoptionObject | None:
    """Return what says that this is no plain table; `None` if it is one."""
    if table.kind == "table":
        return None
    return must_change(
        table.name,
        table.kind,
        f"It is a {table.kind}. The library needs a plain table: it reads the system column xmin, and its keys must hold "
        "for all rows. Make a table of this name, and move the rows into it.",
    )


def compare_table(table: Compared) -> Iterator[AdoptionObject]:
    """Look at a plain table as a whole."""
    yield _kind(table)
    yield _owner(table)
    yield from _policies(table)
    for rule in table.found.rules:
        reason = "PostgreSQL refuses ON CONFLICT on a table with rules."
        yield must_change(table.member(rule), "rule", reason, f"DROP RULE {quoted(rule)} ON {table.name}")
    for trigger in table.found.triggers:
        member = table.member(trigger.name)
        if trigger.function.removeprefix(f"{quoted(table.catalogue.schema)}.") in _GUARDS:
            yield same(member, "trigger")
            continue
        reason = f"It calls {trigger.function} when the library writes, too."
        if trigger.is_before_row:
            reason += " If it keeps a row from being written, the library raises NothingWrittenError."
        yield acceptable(member, "trigger", reason)


def _kind(table: Compared) -> AdoptionObject:
    found = table.found
    reasons: list[str] = []
    statements: list[str] = []
    if found.partition_of is not None:
        reasons.append(f"It is a partition of {found.partition_of}, and no revision can add a column to it.")
        statements.append(f"ALTER TABLE {found.partition_of} DETACH PARTITION {table.name}")
    for child in found.children:
        reasons.append(f"{child} inherits from it, so no key holds for all rows.")
        statements.append(f"ALTER TABLE {child} NO INHERIT {table.name}")
    if found.is_typed:
        reasons.append("It is the table of a type, and no revision can add a column to it.")
        statements.append(table.alter("NOT OF"))
    if found.is_unlogged:
        reasons.append("It is unlogged: PostgreSQL empties it after a crash. The statement rewrites the table.")
        statements.append(table.alter("SET LOGGED"))
    return must_change(found.name, "table", " ".join(reasons), *statements) if reasons else same(found.name, "table")


def _owner(table: Compared) -> AdoptionObject:
    found, role = table.found, table.catalogue.role
    if not found.is_ours:
        reason = f"It belongs to {found.owner}. {role} cannot change it. The owner, or a superuser, runs the statement."
        return must_change(found.name, "owner", reason, table.alter(f"OWNER TO {quoted(role)}"))
    if found.owner != role:
        return acceptable(found.name, "owner", f"It belongs to {found.owner}, whose rights {role} has.")
    return same(found.name, "owner")


def _policies(table: Compared) -> Iterator[AdoptionObject]:
    found = table.found
    if found.hides_rows and found.is_ours:
        reason = "Its policies hold for its owner, too. They would hide rows from the revisions, which check all rows."
        yield must_change(found.name, "row-level security", reason, table.alter("NO FORCE ROW LEVEL SECURITY"))
    elif found.has_policies:
        reason = "It has policies. A row that they hide from the application is not there for the library."
        yield acceptable(found.name, "row-level security", reason)
