"""The SQL of the migrations: the files in tests/sql/migrations, which `make sql` writes, and what they make."""

import os

import psycopg
import pytest
from sqlalchemy import create_engine

from commandbus_process.migrations import REVISIONS, current, differences, sql, upgrade
from commandbus_process.tables import REVISION
from tests.support import ROOT
from tests.support.databases import Server, async_url, execute_script, fresh_database
from tests.support.schema import described, seed

FOLDER = ROOT / "tests/sql/migrations"
UGLY = 'Ugly "schema".50%s :x é $$'
STEPS = list(zip(("base", *REVISIONS), REVISIONS, strict=False))
SCRIPTS = {
    **{f"upgrade_{after}": sql(after, from_revision=before) for before, after in STEPS},
    **{f"downgrade_{after}": sql(before, from_revision=after, way="downgrade") for before, after in STEPS},
    "upgrade_another_schema": sql(schema=UGLY),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_file_has_what_is_printed(name: str) -> None:
    path = FOLDER / f"{name}.sql"
    if os.environ.get("WRITE_SQL"):
        path.write_text(SCRIPTS[name])
    assert path.read_text() == SCRIPTS[name]


def test_there_is_no_other_file() -> None:
    assert {path.stem for path in FOLDER.glob("*")} == set(SCRIPTS)


def test_the_files_make_what_the_migrations_make(newest_server: Server, empty_database_url: str) -> None:
    engine = create_engine(async_url(empty_database_url))
    states: list[tuple[str, dict[str, set[tuple[object, ...]]]]] = []
    with fresh_database(newest_server.url) as by_sql:
        for before, after in STEPS:
            states.append((before, described(by_sql)))
            execute_script(by_sql, SCRIPTS[f"upgrade_{after}"])
            with engine.begin() as connection:
                upgrade(connection, after)
            assert described(by_sql) == described(empty_database_url)
            assert revision_in(by_sql) == after
        for (before, after), (_, state) in zip(reversed(STEPS), reversed(states), strict=True):
            execute_script(by_sql, SCRIPTS[f"downgrade_{after}"])
            assert revision_in(by_sql) == (None if before == "base" else before)
            assert described(by_sql) == state
    engine.dispose()


def revision_in(url: str, schema: str = "commandbus") -> str | None:
    engine = create_engine(async_url(url))
    with engine.begin() as connection:
        found = current(connection, schema=schema)
    engine.dispose()
    return found


def test_another_schema(empty_database_url: str) -> None:
    execute_script(empty_database_url, SCRIPTS["upgrade_another_schema"])
    engine = create_engine(async_url(empty_database_url))
    with engine.begin() as connection:
        assert current(connection, schema=UGLY) == REVISION
        assert differences(connection, schema=UGLY) == []
    engine.dispose()
    assert not any(described(empty_database_url).values())


def test_a_database_that_was_stamped_with_an_old_name(empty_database_url: str) -> None:
    seed(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE commandbus.commandbus_process_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO commandbus.commandbus_process_version VALUES ('0001')")
    execute_script(empty_database_url, sql(from_revision="0001"))
    assert revision_in(empty_database_url) == REVISION
