"""What is nearest, what is no table, whose the tables are, which rows are listed, and how the report is written."""

import json
import os
from collections.abc import Callable, Iterator
from uuid import UUID

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine

from commandbus_process.guards import guard_statements
from commandbus_process.migrations import REVISIONS, alembic_config
from commandbus_process.migrations.__main__ import main
from commandbus_process.migrations.adoption import Verdict, compare
from tests.postgres.adoption.adopting import HEAD, adopt_and_use, compared, make, named, run_statements
from tests.postgres.adoption.variations import AUDIT, PROCESS, Variation, alter
from tests.support.databases import VERSIONS, Server, as_role, async_url, execute, fresh_database
from tests.support.schema import BASELINE, FIRST, STEP, seed

UNTOLD = "hunter2"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("revision", REVISIONS)
def test_each_revision_is_recognised(servers: Callable[[object], Server], version: object, revision: str) -> None:
    with fresh_database(servers(version).url) as url:
        command.upgrade(alembic_config(url), revision)
        found = compared(url)
        assert (found.revision, found.fits) == (revision, True), found.as_text()
        assert {each.verdict for each in found.objects} == {Verdict.SAME}
        assert named(found, revision, "revision").verdict is Verdict.SAME


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tables_made_by_hand_fit(servers: Callable[[object], Server], version: object) -> None:
    with fresh_database(servers(version).url) as url:
        seed(url)
        found = compared(url)
    assert (found.revision, found.fits, found.statements) == (REVISIONS[0], True, ())
    assert {each.verdict for each in found.objects} == {Verdict.SAME}


async def test_an_upgrade_that_was_interrupted_while_it_built_indexes(empty_database_url: str) -> None:
    url = empty_database_url
    make(url, Variation("DROP INDEX commandbus.idx_process_deadline", "", at="commandbus_0005"))
    command.stamp(alembic_config(url), "commandbus_0004")
    found = compared(url)
    assert found.revision == "commandbus_0004"
    await adopt_and_use(url, found)


async def test_tables_that_have_versions_already(empty_database_url: str) -> None:
    """They are nearest to the revision that makes this column, although its keys are still missing."""
    url = empty_database_url
    make(url, Variation(alter(PROCESS, "ADD version integer NOT NULL DEFAULT 1"), ""))
    found = compared(url)
    assert (found.revision, found.fits) == ("commandbus_0002", False)
    run_statements(url, found)
    await adopt_and_use(url, compared(url))


def test_a_column_that_only_has_the_name_moves_no_revision(empty_database_url: str) -> None:
    url = empty_database_url
    make(url, Variation(alter(PROCESS, "ADD version text"), ""))
    found = compared(url)
    assert found.revision == "commandbus_0001"
    assert named(found, "process.version", "column").statement == (
        "ALTER TABLE commandbus.process RENAME COLUMN version TO version_before;"
    )


@pytest.mark.parametrize("revision", ["commandbus_0001", "commandbus_0005"])
@pytest.mark.parametrize("table", ["process", "process_audit"])
async def test_one_table_alone(empty_database_url: str, table: str, revision: str) -> None:
    url = empty_database_url
    make(url, Variation(f"DELETE FROM {AUDIT}; DROP TABLE commandbus.{table} CASCADE", "", at=revision))
    found = compared(url)
    assert (found.revision, found.fits) == (revision, False)
    assert "missing" in named(found, table, "table").reason
    run_statements(url, found)
    await adopt_and_use(url, compared(url))


def test_no_tables(empty_database_url: str) -> None:
    found = compared(empty_database_url)
    assert (found.revision, found.fits, found.objects) == (None, False, ())
    assert "Upgrade" in found.as_text()


def test_a_version_table_that_says_something_else(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    command.stamp(alembic_config(url), "commandbus_0003")
    found = compared(url)
    assert (found.revision, found.fits) == ("commandbus_0001", True)
    assert "nearest to commandbus_0001" in named(found, "commandbus_0003", "revision").reason


def test_the_librarys_own_guards_are_the_same(empty_database_url: str) -> None:
    url = empty_database_url
    command.upgrade(alembic_config(url), "head")
    execute(url, ";".join(guard_statements()))
    found = compared(url)
    assert {each.verdict for each in found.objects if each.kind == "trigger"} == {Verdict.SAME}
    assert found.fits


# --- no tables


KEPT = "CREATE TABLE public.steps (LIKE commandbus.process_audit); DROP TABLE commandbus.process_audit;"
INSTEAD = {
    "view": f"{KEPT} CREATE VIEW {AUDIT} AS SELECT * FROM public.steps",
    "materialized view": f"{KEPT} CREATE MATERIALIZED VIEW {AUDIT} AS SELECT * FROM public.steps",
    "partitioned table": f"{KEPT} CREATE TABLE {AUDIT} (LIKE public.steps) PARTITION BY RANGE (sent_at)",
    "foreign table": f"{KEPT} CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;"
    f"CREATE FOREIGN TABLE {AUDIT} (id bigint) SERVER nowhere",
}


@pytest.mark.parametrize(("kind", "script"), INSTEAD.items(), ids=INSTEAD)
def test_what_is_no_plain_table(empty_database_url: str, kind: str, script: str) -> None:
    url = empty_database_url
    make(url, Variation(script, ""))
    found = compared(url)
    about = named(found, "process_audit", kind)
    assert (found.fits, about.verdict, about.statement) == (False, Verdict.MUST_CHANGE, None)
    assert "plain table" in about.reason


# --- whose they are


@pytest.fixture
def role(empty_database_url: str) -> Iterator[str]:
    name = f"adopter_{os.getpid()}"
    execute(empty_database_url, f"CREATE ROLE {name}")
    yield name
    execute(empty_database_url, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_tables_of_another_owner(empty_database_url: str, role: str) -> None:
    url = empty_database_url
    seed(url)
    mine = as_role(url, role)
    found = compared(mine)
    wanted = {("commandbus", "schema"), ("process", "owner"), ("process_audit", "owner")}
    assert {(each.name, each.kind) for each in found.of(Verdict.MUST_CHANGE) if each.kind != "rows"} == wanted
    assert "may not read" in named(found, "process: rows", "rows").reason
    execute(url, f"GRANT USAGE ON SCHEMA commandbus TO {role}")
    run_statements(url, found)  # by the administrator
    found = compared(mine)
    assert (found.fits, found.revision) == (True, "commandbus_0001"), found.as_text()
    assert named(found, "process", "owner").verdict is Verdict.SAME


def test_an_owner_whose_rights_one_has(empty_database_url: str, role: str) -> None:
    url = empty_database_url
    seed(url)
    execute(url, f"ALTER TABLE {PROCESS} OWNER TO {role}")
    found = compared(url)
    assert (named(found, "process", "owner").verdict, found.fits) == (Verdict.ACCEPTABLE, True)


def test_policies_that_hide_rows_from_the_owner(empty_database_url: str, role: str) -> None:
    url = empty_database_url
    seed(url)
    execute(
        url,
        f"GRANT USAGE, CREATE ON SCHEMA commandbus TO {role};"
        f"ALTER TABLE {PROCESS} OWNER TO {role}; ALTER TABLE {AUDIT} OWNER TO {role};"
        f"ALTER TABLE {PROCESS} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )
    mine = as_role(url, role)
    found = compared(mine)
    assert [(each.name, each.kind) for each in found.of(Verdict.MUST_CHANGE)] == [("process", "row-level security")]
    run_statements(mine, found)
    found = compared(mine)
    assert (named(found, "process", "row-level security").verdict, found.fits) == (Verdict.ACCEPTABLE, True)


# --- rows


def test_rows_are_counted_and_the_first_five_named(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    execute(
        url,
        f"INSERT INTO {STEP}, command_data, reply_outcome) SELECT 'orders', '{FIRST}', 'torn', gen_random_uuid(), "
        f"'Reserve', now(), '\"{UNTOLD}\"', 'SUCCESS' FROM generate_series(1, 7)",
    )
    found = compared(url)
    about = named(found, "process_audit: rows that break process_audit_reply_check", "rows")
    assert about.rows is not None
    assert (about.rows.count, len(about.rows.first)) == (7, 5)
    assert about.rows.first[0].startswith(f"id 4, domain orders, process_id {FIRST}, command_id ")
    with psycopg.connect(url) as connection:
        assert len(connection.execute(about.rows.query.encode()).fetchall()) == 7
    assert UNTOLD not in found.as_text() + found.as_json()
    assert about.rows.query in found.as_text()
    assert "7 found" in found.as_text()


def test_a_command_that_is_logged_twice_names_its_entries(empty_database_url: str) -> None:
    url = empty_database_url
    seed(url)
    execute(url, f"UPDATE {AUDIT} SET command_id = '{UUID(int=7)}'")
    about = named(compared(url), "process_audit: several rows with the same domain, process_id, command_id", "rows")
    assert about.rows is not None
    assert about.rows.count == 1
    assert about.rows.first[0].endswith("ids [1, 2]")


@pytest.mark.parametrize(
    ("script", "name", "verdict"),
    [
        (
            alter(PROCESS, "ALTER current_step TYPE text") + f"UPDATE {PROCESS} SET current_step = repeat('x', 256)",
            "process: current_step is longer than 255 characters",
            Verdict.ACCEPTABLE,
        ),
        (
            alter(AUDIT, "ALTER command_id TYPE text") + f"UPDATE {AUDIT} SET command_id = 'n' || id",
            "process_audit: command_id cannot become uuid",
            Verdict.MUST_CHANGE,
        ),
        (
            alter(PROCESS, "ALTER state TYPE json USING '{}'::json") + f"UPDATE {PROCESS} SET state = '\"\\u0000\"'",
            "process: state cannot become jsonb",
            Verdict.MUST_CHANGE,
        ),
        (
            f"UPDATE {PROCESS} SET status = 'PAUSED'",
            "process: rows that break process_status_known",
            Verdict.ACCEPTABLE,
        ),
        (
            f"UPDATE {AUDIT} SET reply_data = '1', reply_outcome = NULL, received_at = NULL",
            "process_audit: rows that break process_audit_data_with_outcome",
            Verdict.ACCEPTABLE,
        ),
        (
            f"UPDATE {AUDIT} SET reply_outcome = 'PARTIAL', received_at = now()",
            "process_audit: rows that break process_audit_outcome_known",
            Verdict.ACCEPTABLE,
        ),
        (
            f"ALTER TABLE {AUDIT} DROP CONSTRAINT process_audit_domain_process_id_fkey; DELETE FROM {PROCESS}",
            "process_audit: steps without a process",
            Verdict.MUST_CHANGE,
        ),
        (
            f"ALTER TABLE {PROCESS} DROP CONSTRAINT process_pkey CASCADE; INSERT INTO {PROCESS} TABLE {PROCESS}",
            "process: several rows with the same domain, process_id",
            Verdict.MUST_CHANGE,
        ),
        (
            f"ALTER TABLE {AUDIT} DROP CONSTRAINT process_audit_pkey; UPDATE {AUDIT} SET id = 1",
            "process_audit: several rows with the same id",
            Verdict.MUST_CHANGE,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" in value and len(value) < 99 else "",
)
def test_each_rule_finds_its_rows(empty_database_url: str, script: str, name: str, verdict: Verdict) -> None:
    url = empty_database_url
    seed(url)
    execute(url, script)
    found = compared(url)
    with psycopg.connect(url) as connection:
        if "cannot become" in name and connection.info.server_version < 160_000:
            assert not found.fits  # the statement finds them: that server cannot try a value
            return
        about = named(found, name, "rows")
        assert about.verdict is verdict
        assert about.rows is not None
        assert len(connection.execute(about.rows.query.encode()).fetchall()) == about.rows.count > 0


def test_which_rows_break_the_checks_of_the_newest_revision(empty_database_url: str) -> None:
    url = empty_database_url
    checks = "ALTER TABLE commandbus.process DROP CONSTRAINT process_version_positive;"
    make(
        url,
        Variation(
            checks + f"UPDATE {PROCESS} SET version = 0; ALTER TABLE {AUDIT} DROP CONSTRAINT "
            f"process_audit_compensates_another; UPDATE {AUDIT} SET compensates = command_id",
            "",
            at=HEAD,
        ),
    )
    found = compared(url)
    counts = {each.name: each.rows.count for each in found.objects if each.rows is not None}
    assert counts == {
        "process: rows that break process_version_positive": 2,
        "process_audit: rows that break process_audit_compensates_another": 3,
    }


# --- the report


UGLY = """the "sch:ema" of 100%s 'x'"""


def test_any_schema(empty_database_url: str) -> None:
    url = empty_database_url
    quoted = '"' + UGLY.replace('"', '""') + '"'
    execute(url, BASELINE.replace("commandbus", quoted))
    execute(url, f"ALTER TABLE {quoted}.process ALTER state TYPE json USING state::json")
    execute(url, f"INSERT INTO {quoted}.process (domain, process_id, process_type) VALUES ('a', '{FIRST}', 'b')")
    found = compared(url, UGLY)
    assert (found.revision, [each.name for each in found.of(Verdict.MUST_CHANGE)]) == (
        "commandbus_0001",
        ["process.state"],
    )
    assert quoted in found.statements[0]
    run_statements(url, found)
    found = compared(url, UGLY)
    assert found.fits, found.as_text()
    execute(url, f"UPDATE {quoted}.process SET status = 'PAUSED'")
    assert [each.rows.count for each in compared(url, UGLY).objects if each.rows is not None] == [1]


@pytest.mark.parametrize("script", ["", alter(AUDIT, "ALTER sent_at TYPE timestamp")], ids=["fits", "does not"])
def test_the_command_prints_a_report_and_stamps_only_what_fits(
    empty_database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    seed(empty_database_url)
    if script:
        execute(empty_database_url, script)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    found = compared(empty_database_url)
    status = 1 if script else 0
    assert main(["adopt", "--dry-run"]) == status
    assert capsys.readouterr().out == f"{found.as_text()}\n"
    assert main(["adopt", "--dry-run", "--json"]) == status
    printed = json.loads(capsys.readouterr().out)
    assert (printed["schema"], printed["revision"], printed["fits"]) == ("commandbus", "commandbus_0001", not script)
    assert [(each["name"], each["verdict"]) for each in printed["objects"]] == [
        (each.name, each.verdict.value) for each in found.objects
    ]
    assert set(printed["objects"][0]) == {"name", "kind", "verdict", "reason", "statement", "rows"}
    main(["current"])
    assert capsys.readouterr().out == "base\n"
    for _ in range(2):
        assert main(["adopt", "--json"]) == status
        told = capsys.readouterr()
        json.loads(told.out)
        assert ("Stamped commandbus_0001. Go on with" in told.err) == (not script)
    main(["current"])
    assert capsys.readouterr().out == ("base\n" if script else "commandbus_0001\n")
    if not script:
        assert main(["upgrade"]) == 0


def test_nothing_to_adopt(
    empty_database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert main(["adopt", "--schema", "nowhere"]) == 1
    assert (
        capsys.readouterr().out == 'There are no tables to adopt in the schema "nowhere". Upgrade, which makes them.\n'
    )
    assert main(["adopt", "--schema", "pg_catalog"]) == 1


def test_each_object_is_in_the_text_with_its_statement(empty_database_url: str) -> None:
    seed(empty_database_url)
    execute(empty_database_url, alter(AUDIT, "ALTER sent_at TYPE timestamp", "ADD trace text"))
    found = compared(empty_database_url)
    text = found.as_text()
    assert [each.name for each in found.objects if each.name not in text] == []
    assert all(statement in text for statement in found.statements)
    assert "Must change (1)" in text
    assert "Acceptable (1)" in text
    assert "in which zone" in " ".join(text.split())


def test_nothing_of_another_schema_is_called(empty_database_url: str) -> None:
    """Not even a function in a CHECK, or an operator on the search path: the migrator has more rights than others."""
    url = empty_database_url
    seed(url)
    execute(
        url,
        f"""
        CREATE SCHEMA trap;
        CREATE FUNCTION trap.hit(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
        CREATE OPERATOR trap.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = trap.hit);
        CREATE FUNCTION trap.known(text) RETURNS boolean LANGUAGE plpgsql
            AS $$ BEGIN IF current_user = 'postgres' THEN RAISE 'trapped'; END IF; RETURN true; END $$;
        ALTER TABLE {PROCESS} ADD CONSTRAINT known CHECK (trap.known(status)) NOT VALID;
        """,
    )
    engine = create_engine(async_url(url))
    with engine.connect() as connection:
        connection.exec_driver_sql("SET search_path TO trap, pg_catalog, public")
        found = compare(connection)
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "trap, pg_catalog, public"
    engine.dispose()
    assert (found.fits, named(found, "process.known", "CHECK").verdict) == (True, Verdict.ACCEPTABLE)
