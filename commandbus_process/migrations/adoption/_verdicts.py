"""What a comparison says about one object, and how SQL names it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.dialects import postgresql

from commandbus_process.migrations._history import KNOWN
from commandbus_process.migrations.adoption._catalogue import Catalogue, FoundTable
from commandbus_process.migrations.adoption._expected import ExpectedTable, expected_layouts
from commandbus_process.tables import process, process_audit

# Without psycopg's style of parameters, for which a percent sign would be doubled.
_PREPARER = postgresql.dialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]
_LONGEST_NAME = 63  # bytes


class Verdict(StrEnum):
    """What must happen to an object before the tables can be adopted."""

    SAME = "same"
    """Nothing: it is as the revision makes it."""
    ACCEPTABLE = "acceptable"
    """Nothing: it differs, and the library works with it."""
    MUST_CHANGE = "must change"
    """It must change first."""


@dataclass(frozen=True)
class BrokenRows:
    """Rows that break a key or a CHECK.

    Attributes:
        count: How many there are.
        query: The SQL that shows them.
        first: The keys of the first five: columns and values. Never a state or a payload.
    """

    count: int
    query: str
    first: tuple[str, ...]


@dataclass(frozen=True)
class AdoptionObject:
    """One object, compared with what the revision makes.

    Attributes:
        name: Its name, without the schema: `process.state`.
        kind: What it is: `table`, `column`, `index`, `rows` …
        verdict: Whether it must change.
        reason: Why. Empty if it is the same.
        statement: The SQL that changes it, if it must and SQL can. It may be several statements, one on each line.
        rows: The rows that are in the way, if the object is about rows.
    """

    name: str
    kind: str
    verdict: Verdict
    reason: str = ""
    statement: str | None = None
    rows: BrokenRows | None = None


def must_change(name: str, kind: str, reason: str, *statements: str) -> AdoptionObject:
    """Return what says that an object must change."""
    script = "\n".join(f"{statement};" for statement in statements)
    return AdoptionObject(name, kind, Verdict.MUST_CHANGE, reason, script or None)


def acceptable(name: str, kind: str, reason: str) -> AdoptionObject:
    """Return what says that an object differs, and that this is fine."""
    return AdoptionObject(name, kind, Verdict.ACCEPTABLE, reason)


def same(name: str, kind: str) -> AdoptionObject:
    """Return what says that an object is as expected."""
    return AdoptionObject(name, kind, Verdict.SAME)


def quoted(*names: str) -> str:
    """Return a name as SQL writes it: with quotes if it needs them, and with dots between its parts."""
    return ".".join(_PREPARER.quote(name) for name in names)


def listed(names: Iterable[str]) -> str:
    """Return names as SQL writes them, with commas."""
    return ", ".join(quoted(name) for name in names)


@dataclass(frozen=True)
class Compared:
    """A table beside what a revision makes of it.

    Attributes:
        catalogue: What was found.
        found: The table that was found.
        number: The position of the revision in `KNOWN`.
    """

    catalogue: Catalogue
    found: FoundTable
    number: int

    @property
    def revision(self) -> str:
        """The revision's id."""
        return KNOWN[self.number]

    @property
    def expected(self) -> ExpectedTable:
        """What the revision makes."""
        return expected_layouts()[self.number][self.found.name]

    @property
    def newest(self) -> ExpectedTable:
        """What the newest revision makes."""
        return expected_layouts()[-1][self.found.name]

    def added_by(self, kind: str, name: str) -> str | None:
        """Return the later revision that makes such a member of the table, if any.

        Args:
            kind: An attribute of `ExpectedTable`.
            name: The member's name.
        """
        for revision, layout in list(zip(KNOWN, expected_layouts(), strict=True))[self.number + 1 :]:
            if name in getattr(layout[self.found.name], kind):
                return revision
        return None

    @property
    def is_audit(self) -> bool:
        """Whether this is the audit trail."""
        return self.found.name == process_audit.name

    @property
    def name(self) -> str:
        """The table's name in SQL."""
        return quoted(self.catalogue.schema, self.found.name)

    def alter(self, *actions: str) -> str:
        """Return an ALTER TABLE."""
        return f"ALTER TABLE {self.name} {', '.join(actions)}"

    def member(self, name: str) -> str:
        """Return the name of a column, a constraint or an index, as the report writes it."""
        return f"{self.found.name}.{name}"

    def aside(self, name: str, end: str = "_before") -> str:
        """Return a free name for an object that is in the way.

        Args:
            name: The name that it has.
            end: What is added to it.
        """
        taken = {*self.found.columns, *self.catalogue.others}
        taken |= {each.name for table in self.catalogue.tables.values() for each in table.indexes}
        taken |= {each.name for each in self.found.constraints}
        free = _shortened(name, end)
        number = 1
        while free in taken:
            number += 1
            free = _shortened(name, f"{end}_{number}")
        return free


def _shortened(name: str, end: str) -> str:
    start = name.encode()[: _LONGEST_NAME - len(end)].decode(errors="ignore")
    return f"{start}{end}"


def links(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the names of the foreign keys of the audit trail that refer to `process`."""
    audit = catalogue.tables.get(process_audit.name)
    if audit is None:
        return ()
    return tuple(each.name for each in audit.constraints if each.kind == "f" and each.references == process.name)


def drop_links(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the statements that drop them. They may be run again."""
    audit = quoted(catalogue.schema, process_audit.name)
    return tuple(f"ALTER TABLE {audit} DROP CONSTRAINT IF EXISTS {quoted(name)}" for name in links(catalogue))


def locked(catalogue: Catalogue, *statements: str) -> tuple[str, ...]:
    """Return statements that use both tables, in a transaction that locks them first.

    A foreign key is changed from the audit trail to `process`. Writers go the other way, so one of the two could be
    ended by a deadlock.
    """
    tables = ", ".join(quoted(catalogue.schema, name) for name in (process.name, process_audit.name))
    return ("BEGIN", f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE", *statements, "COMMIT")
