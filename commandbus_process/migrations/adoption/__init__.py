"""Compare tables that somebody has made by hand with what the revisions make, before they are adopted.

    with engine.connect() as connection:
        adoption = compare(connection)
    print(adoption.as_text())

If `adoption.fits`, stamp `adoption.revision`, and upgrade. The command line compares and stamps:

    python -m commandbus_process.migrations adopt
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from sqlalchemy import Connection

from commandbus_process.migrations._connections import search_path_pinned
from commandbus_process.migrations._history import KNOWN
from commandbus_process.migrations.adoption import _report
from commandbus_process.migrations.adoption._broken_rows import look_for_broken_rows
from commandbus_process.migrations.adoption._catalogue import TABLES, Catalogue, read_catalogue
from commandbus_process.migrations.adoption._compare_columns import (
    compare_columns,
    is_column_of_later,
    key_changes_type,
)
from commandbus_process.migrations.adoption._compare_constraints import compare_constraints
from commandbus_process.migrations.adoption._compare_tables import (
    compare_schema,
    compare_stamp,
    compare_table,
    missing_table,
    stands_in,
)
from commandbus_process.migrations.adoption._verdicts import AdoptionObject, BrokenRows, Compared, Verdict

__all__ = ["Adoption", "AdoptionObject", "BrokenRows", "Verdict", "compare"]

_FAR = 100
"""How far a column that a later revision makes moves a revision away: further than everything else together."""


@dataclass(frozen=True)
class Adoption:
    """What a comparison has found.

    Attributes:
        schema: The schema that was looked at.
        revision: The revision that the tables are nearest to. `None` if there are no tables.
        objects: Each object, with what must happen to it. Their statements are run in this order.
    """

    schema: str
    revision: str | None
    objects: tuple[AdoptionObject, ...]

    @property
    def fits(self) -> bool:
        """Whether the tables can be stamped as `revision` and upgraded."""
        return self.revision is not None and not any(self.of(Verdict.MUST_CHANGE))

    @property
    def statements(self) -> tuple[str, ...]:
        """The statements of what must change, one by one, in the order in which they are run."""
        scripts = [each.statement for each in self.objects if each.statement is not None]
        return tuple(statement for script in scripts for statement in script.splitlines())

    def of(self, verdict: Verdict) -> Iterator[AdoptionObject]:
        """Return the objects with this verdict."""
        return (each for each in self.objects if each.verdict is verdict)

    def as_text(self) -> str:
        """Return a report for people. It has names and keys, and never a state or a payload."""
        return _report.as_text(self.schema, self.revision, self.objects)

    def as_json(self) -> str:
        """Return the same as JSON, for programs."""
        return _report.as_json({**asdict(self), "fits": self.fits})


def compare(connection: Connection, schema: str = "commandbus") -> Adoption:
    """Compare the tables in a schema with what each revision makes, and look at their rows.

    Nothing is changed. The tables are only read, in your transaction, which you end. It takes about fifteen round trips
    for the definitions, and one for each rule that no key or CHECK enforces yet. Each of these reads a whole table. The
    lock of a reader (ACCESS SHARE) is held until the transaction ends.

    Args:
        connection: A connection of the role that will migrate: what it may do is part of the comparison. It must not be
            in autocommit.
        schema: The schema's name, without quotes.

    Returns:
        What was found. If there are no tables, there is no `revision`, and nothing fits.

    Raises:
        sqlalchemy.exc.DBAPIError: The server refuses a query.
    """
    with search_path_pinned(connection):
        catalogue = read_catalogue(connection, schema)
        if not catalogue.tables:
            return Adoption(schema, None, ())
        in_place = [found for each in catalogue.tables.values() if (found := stands_in(each)) is not None]
        number = min(reversed(range(len(KNOWN))), key=lambda each: _distance(catalogue, each))
        tables = _compared(catalogue, number)
        return Adoption(
            schema=schema,
            revision=KNOWN[number],
            objects=(
                *in_place,
                *(missing_table(catalogue, name, number) for name in TABLES if name not in catalogue.tables),
                *compare_schema(catalogue),
                *_compare_definitions(catalogue, number),
                *look_for_broken_rows(connection, {each.found.name: each for each in tables}),
                *compare_stamp(catalogue, KNOWN[number]),
            ),
        )


def _compared(catalogue: Catalogue, number: int) -> list[Compared]:
    """Return the plain tables beside what a revision makes of them."""
    return [Compared(catalogue, each, number) for each in catalogue.tables.values() if each.kind == "table"]


def _compare_definitions(catalogue: Catalogue, number: int) -> Iterator[AdoptionObject]:
    tables = _compared(catalogue, number)
    for table in tables:
        yield from compare_table(table)
    for table in tables:
        yield from compare_columns(table)
    changes = key_changes_type(tables)
    for table in tables:
        yield from compare_constraints(table, key_changes_type=changes)


def _distance(catalogue: Catalogue, number: int) -> int:
    """Return how far the tables are from a revision.

    If a table has a column that a later revision makes, the revision is behind it. Otherwise, what must change counts.
    """
    behind = sum(
        is_column_of_later(table, name) for table in _compared(catalogue, number) for name in table.found.columns
    )
    changes = sum(each.verdict is Verdict.MUST_CHANGE for each in _compare_definitions(catalogue, number))
    return _FAR * behind + changes
