"""What the tests send to a server with Citus first. Only `TEST_CITUS=1` can show whether Citus takes it."""

import re

import pytest
from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint

from commandbus_process.grants import grant_statements
from commandbus_process.tables import metadata
from tests.support import ROOT, citus


def sent(grants: list[str]) -> list[str]:
    statements: list[str] = []
    citus.distribute(grants, statements.append)
    return statements


def test_the_extension_comes_first_then_each_table_after_those_that_it_refers_to() -> None:
    extension, *tables = sent([])
    assert extension == "CREATE EXTENSION citus"
    distributed = [re.findall(r"create_distributed_table\('([\w.]+)', '(\w+)'", each) for each in tables]
    assert distributed == [[(table.fullname, "process_id")] for table in metadata.sorted_tables]


def test_steps_are_on_the_node_of_their_process() -> None:
    _, process, audit = sent([])
    assert "colocate_with" not in process
    assert "colocate_with => 'commandbus.process'" in audit


def test_every_key_contains_the_column_that_the_tables_are_distributed_by() -> None:
    """Citus refuses any other."""
    keys = [
        constraint.columns.keys()
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint)
    ]
    assert len(keys) == 3
    assert [key for key in keys if "process_id" not in key] == []


def test_rights_are_repeated_on_the_shards_of_both_tables_and_for_whole_tables() -> None:
    statements = sent(grant_statements("o'neil"))[3:]
    assert statements == [
        "SELECT run_command_on_shards('commandbus.process', 'GRANT SELECT, INSERT, UPDATE ON %s TO \"o''neil\"')",
        "SELECT run_command_on_shards('commandbus.process_audit', 'GRANT SELECT, INSERT, UPDATE ON %s TO \"o''neil\"')",
    ]


def test_nobody_can_enter_the_template_any_more_when_the_others_are_sent_away() -> None:
    statements: list[str] = []
    citus.leave_alone("template", statements.append)
    closed, ended = statements
    assert closed == "ALTER DATABASE template ALLOW_CONNECTIONS false"
    assert "pg_terminate_backend" in ended
    assert "datname = 'template'" in ended


@pytest.mark.parametrize("pattern", citus.CANNOT_HOLD)
def test_what_cannot_hold_is_there(pattern: str) -> None:
    """Else a test that was renamed would run, or one that can hold be left out."""
    ids = [
        f"{path.relative_to(ROOT)}::{name}[claim]"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    ]
    assert [each for each in ids if re.search(pattern, each)] != []


def test_the_first_reason_that_fits_is_given() -> None:
    assert citus.why_it_cannot_hold("tests/contract/test_repository.py::test_any[claim]") is None
    why = citus.why_it_cannot_hold("tests/postgres/schema/test_guards.py::test_any")
    assert why == "triggers are refused on distributed tables"
