"""`docs/schema.md` has the tables, constraints, indexes and revisions that there are."""

import re
from pathlib import Path

import psycopg
from sqlalchemy import CheckConstraint

from commandbus_process import tables
from commandbus_process.migrations import REVISIONS
from commandbus_process.migrations._history import scripts

PAGE = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()

# Columns; primary, unique and foreign keys. (The page has the CHECKs and the other indexes in tables of its own.)
DESCRIBED = """
    SELECT 'column', table_name, column_name, format('%s(%s)', data_type, character_maximum_length), is_nullable,
        regexp_replace(column_default, '::\\w+$', '')
    FROM information_schema.columns WHERE table_schema = 'commandbus'
    UNION ALL
    SELECT 'key', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
    FROM pg_constraint WHERE connamespace = to_regnamespace('commandbus') AND contype IN ('p', 'u', 'f')
"""


def described(url: str) -> set[tuple[str, ...]]:
    with psycopg.connect(url) as connection:
        found = connection.execute(DESCRIBED.encode()).fetchall()
    return {row for row in found if row[1].removeprefix("commandbus.") in {"process", "process_audit"}}


def named_in(section: str) -> set[str]:
    """The first name in each row of the section's table."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


def test_the_statements_make_the_tables_that_the_migrations_make(database_url: str, empty_database_url: str) -> None:
    found = re.search(r"```sql\n(CREATE TABLE .*?)```", PAGE, re.DOTALL)
    assert found is not None
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(b"CREATE SCHEMA commandbus")
        connection.execute(found[1].encode())
    assert described(empty_database_url) == described(database_url)


def test_every_index_and_check_has_its_row(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        indexes = connection.execute(
            "SELECT indexname FROM pg_indexes WHERE tablename IN ('process', 'process_audit')"
        ).fetchall()
    assert named_in("The tables") == {name for (name,) in indexes}
    checks = {
        each.name
        for table in (tables.process, tables.process_audit)
        for each in table.constraints
        if isinstance(each, CheckConstraint)
    }
    assert named_in("What the database refuses") == checks


def test_every_revision_has_its_row() -> None:
    assert named_in("What each revision does and locks") == set(REVISIONS)


def test_every_revision_has_its_row_with_the_code_that_works_with_it() -> None:
    told = re.findall(r"^\| `(\w+)` \| (expand|contract)s \| `(\w+)` \|", PAGE, re.MULTILINE)
    modules = [(name, scripts().get_revision(name).module) for name in REVISIONS]
    assert told == [(name, module.kind, module.works_with_code_since) for name, module in modules]
