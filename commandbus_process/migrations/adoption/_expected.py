"""What the two tables are at each revision.

The layouts are in `_layouts.json`. Nobody writes that file: a test makes it from a migrated database, and compares it
(tests/postgres/adoption/test_layouts.py). So a database can be compared with a revision although no second database
is at hand.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from commandbus_process.migrations.adoption._catalogue import Catalogue, FoundColumn, FoundTable

FILE = Path(__file__).with_name("_layouts.json")


@dataclass(frozen=True)
class ExpectedColumn:
    """A column, as the revisions make it."""

    type: str
    is_nullable: bool
    default: str | None
    """The sequence that feeds `process_audit.id` is no default here."""


@dataclass(frozen=True)
class ExpectedTable:
    """A table, as the revisions make it. Constraints and indexes are found by their names."""

    columns: Mapping[str, ExpectedColumn]
    primary_key: tuple[str, tuple[str, ...]]
    """Its name, and its columns."""
    unique: Mapping[str, tuple[str, ...]]
    foreign: Mapping[str, tuple[str, ...]]
    """The columns, which refer to those of the same names in `process`."""
    checks: Mapping[str, str]
    indexes: Mapping[str, str]
    """What follows the table: `btree (a, b) WHERE …`. Without those of keys."""

    def names(self) -> frozenset[str]:
        """Return the names that constraints and indexes take."""
        return frozenset({self.primary_key[0], *self.unique, *self.foreign, *self.checks, *self.indexes})


Layout = Mapping[str, ExpectedTable]
"""Both tables, by their names."""


@cache
def expected_layouts() -> tuple[Layout, ...]:
    """Return the layout of each revision, the oldest first."""
    return tuple(_read_layout(each) for each in json.loads(FILE.read_text(encoding="utf-8")))


def _read_layout(description: Mapping[str, Any]) -> Layout:
    return {name: _read_table(table) for name, table in description.items()}


def _read_table(description: Mapping[str, Any]) -> ExpectedTable:
    [(key, columns)] = description["primary key"].items()
    return ExpectedTable(
        columns={name: ExpectedColumn(*column) for name, column in description["columns"].items()},
        primary_key=(key, tuple(columns)),
        unique={name: tuple(names) for name, names in description["unique keys"].items()},
        foreign={name: tuple(names) for name, names in description["foreign keys"].items()},
        checks=description["checks"],
        indexes=description["indexes"],
    )


def described(catalogue: Catalogue) -> dict[str, Any]:
    """Return what was found in a migrated database, in the form that `_layouts.json` has."""
    return {name: _describe(table) for name, table in sorted(catalogue.tables.items())}


def _describe(table: FoundTable) -> dict[str, Any]:
    constraints: dict[str, dict[str, Any]] = {"p": {}, "u": {}, "f": {}, "c": {}}
    for each in table.constraints:
        constraints[each.kind][each.name] = each.definition if each.kind == "c" else list(each.columns)
    return {
        "columns": {name: _describe_column(column) for name, column in table.columns.items()},
        "primary key": constraints["p"],
        "unique keys": constraints["u"],
        "foreign keys": constraints["f"],
        "checks": constraints["c"],
        "indexes": {each.name: each.definition for each in table.indexes if not each.is_of_constraint},
    }


def _describe_column(column: FoundColumn) -> list[object]:
    return [column.type, column.is_nullable, column.default if column.sequence is None else None]


def as_file(layouts: list[dict[str, Any]]) -> str:
    """Return the text of `_layouts.json`: one line for each column, constraint and index."""
    lines: list[str] = []
    for layout in layouts:
        for table, description in layout.items():
            lines.append(f'{"[" if not lines else ""}{{"{table}": {{' if table == min(layout) else f'"{table}": {{')
            for kind, members in description.items():
                inside = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in members.items())
                end = "" if kind == "indexes" else ","
                lines.append(f' "{kind}": {{\n{inside}}}{end}' if members else f' "{kind}": {{}}{end}')
            lines.append("}" if table == max(layout) else "},")
        lines.append("}]" if layout is layouts[-1] else "},")
    return "\n".join(lines) + "\n"
