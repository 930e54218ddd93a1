"""`docs/data.md` leaves nothing out, and nothing in it is out of date.

Its tables are compared with the models, the tables, the rights and the errors.
"""

import ast
import inspect
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Table

from commandbus_process import (
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessRepositoryError,
    ProcessStatus,
    ReplyOutcome,
    StepReply,
    errors,
    tables,
)
from commandbus_process.grants import grant_statements
from tests.support.databases import DIALECT

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def rows(section: str, table: int = 0) -> list[list[str]]:
    """The cells of each row of a table in a section; its heading is left out."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)[table]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found.splitlines()]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_names(found: Iterable[list[str]]) -> list[str]:
    return [names(cells[0])[0] for cells in found]


def sql_type(column: Column[Any]) -> str:
    shown = str(column.type.compile(dialect=DIALECT)).lower()
    shown = shown.replace("timestamp with time zone", "timestamptz")
    return shown if column.nullable else f"{shown} not null"


COLUMNS = {"A process": tables.process, "An audit entry": tables.process_audit}
COLUMN_ROWS = {
    "A process": rows("A process") + rows("A process", 1),
    "An audit entry": rows("An audit entry") + rows("An audit entry", 1),
}


@pytest.mark.parametrize(
    ("section", "model"),
    [("A process", ProcessMetadata), ("An audit entry", ProcessAuditEntry), ("A reply", StepReply)],
)
def test_every_field_has_its_row_and_no_other_is_there(
    section: str, model: type[ProcessMetadata] | type[ProcessAuditEntry] | type[StepReply]
) -> None:
    assert sorted(first_names(rows(section))) == sorted(model.model_fields)


@pytest.mark.parametrize(("section", "table"), COLUMNS.items())
def test_every_column_has_its_row_with_its_type(section: str, table: Table) -> None:
    told = {names(cells[0])[0]: names(cells[1])[0] for cells in COLUMN_ROWS[section]}
    assert told == {column.name: sql_type(column) for column in table.columns}


def granted(table: Table, right: str) -> set[str]:
    """The columns that the application's role may INSERT or UPDATE: those that the library writes."""
    [statement] = [each for each in grant_statements("application") if f"ON {table.fullname} " in each]
    found = re.search(rf"{right} \(([^)]*)\)", statement)
    assert found is not None
    return set(found[1].split(", "))


@pytest.mark.parametrize(
    ("section", "right", "who"),
    [
        ("A process", "INSERT", "`save`"),
        ("A process", "UPDATE", "`update`"),
        ("An audit entry", "UPDATE", "the reply"),
    ],
)
def test_who_sets_a_column_has_the_right_to(section: str, right: str, who: str) -> None:
    told = {names(cells[0])[0] for cells in COLUMN_ROWS[section] if who in cells[2]}
    assert told == granted(COLUMNS[section], right)


def test_the_rest_of_an_entry_is_the_commands_or_the_databases() -> None:
    """A command is inserted whole; what no right allows to insert, the database sets."""
    of_command = {names(cells[0])[0] for cells in COLUMN_ROWS["An audit entry"] if cells[2] == "the command"}
    table = tables.process_audit
    assert of_command == granted(table, "INSERT") - granted(table, "UPDATE")
    of_database = {names(cells[0])[0] for cells in COLUMN_ROWS["An audit entry"] if cells[2] == "the database"}
    assert of_database == set(table.columns.keys()) - granted(table, "INSERT") - granted(table, "UPDATE")


@pytest.mark.parametrize(("section", "enumeration"), [("Status", ProcessStatus), ("Outcome", ReplyOutcome)])
def test_every_member_has_its_row_with_what_is_stored(section: str, enumeration: type[StrEnum]) -> None:
    told = {names(cells[0])[0]: names(cells[1])[0] for cells in rows(section)}
    assert told == {name: member.value for name, member in enumeration.__members__.items()}


def test_which_statuses_are_terminal() -> None:
    told = {names(cells[0])[0]: cells[2] for cells in rows("Status")}
    assert told == {each.name: "yes" if each.is_terminal else "no" for each in ProcessStatus}


ERRORS = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and issubclass(each, ProcessRepositoryError)
}


def test_every_error_has_its_row_with_its_bases() -> None:
    told = {names(cells[0])[0]: names(cells[1]) for cells in rows("Errors")}
    assert len(told) == len(rows("Errors"))
    assert told == {name: [base.__name__ for base in each.__bases__] for name, each in ERRORS.items()}


def test_which_errors_are_retryable() -> None:
    told = {names(cells[0])[0]: cells[2].split(" ")[0] for cells in rows("Errors")}
    sometimes = {"ProcessNotFoundError": "only"}
    never = ProcessRepositoryError.retryable
    expected = {
        name: "no" if inspect.getattr_static(each, "retryable") is never else "yes" for name, each in ERRORS.items()
    }
    assert told == {**expected, **sometimes}


def attributes_in_source() -> dict[str, set[str]]:
    """Of each error, the attributes that its own class sets, and its properties."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(inspect.getsource(errors)).body:
        if not isinstance(node, ast.ClassDef) or node.name not in ERRORS:
            continue
        own = {
            target.attr
            for assignment in ast.walk(node)
            if isinstance(assignment, ast.Assign)
            for target in assignment.targets
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
        }
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                own.add(statement.target.id)
            if isinstance(statement, ast.FunctionDef) and any(
                isinstance(each, ast.Name) and each.id == "property" for each in statement.decorator_list
            ):
                own.add(statement.name)
        found[node.name] = own
    return found


def test_every_attribute_of_an_error_has_its_row_with_the_errors_that_have_it() -> None:
    own = attributes_in_source()
    every = {
        name: {attribute for base in each.__mro__ for attribute in own.get(base.__name__, ())}
        for name, each in ERRORS.items()
    }
    told: dict[str, set[str]] = {name: set() for name in ERRORS}
    for cells in rows("Attributes of errors"):
        attribute = names(cells[0])[0]
        for named in ERRORS if cells[1] == "all" else names(cells[1]):
            below = f"`{named}` and below" in cells[1]
            having = [each for each in ERRORS if below and issubclass(ERRORS[each], ERRORS[named])] or [named]
            for each in having:
                told[each].add(attribute)
    assert told == every


def test_every_anchor_of_the_contents_is_a_heading() -> None:
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    linked = set(re.findall(r"\]\(#([\w-]+)\)", PAGE))
    assert linked <= headings
    assert headings <= linked
