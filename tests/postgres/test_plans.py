"""Each index serves a statement, each statement has its index, in the generic plan that a prepared statement gets."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from sqlalchemy import ClauseElement, text
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import PostgresProcessRepository, ProcessStatus, tables
from commandbus_process.postgres import _claiming, _listing, _pages, _retention, _statistics
from tests.support.databases import DIALECT, Server, as_role, async_url, fresh_database
from tests.support.items import new_entry, new_process
from tests.support.statements import STATEMENTS

PROCESSES = 32_000

# Four domains. Most processes have ended, as in any database of some age, and a few of each domain are waiting. Two
# statuses have a backlog.
FILL = f"""
INSERT INTO commandbus.process (domain, process_id, process_type, status, business_key, deadline, created_at)
    SELECT 'domain ' || number % 4, gen_random_uuid(), 'order',
           CASE WHEN number % 500 < 4 THEN 'WAITING'
                ELSE ('{{WAITING_FOR_TSQ,COMPENSATING,COMPLETED,COMPLETED,COMPLETED}}'::text[])[1 + number / 4 % 5] END,
           'A-' || number / 4, CASE WHEN number % 3 = 0 THEN now() - number * interval '1 second' END,
           now() - number * interval '1 second'
    FROM generate_series(1, {PROCESSES}) AS number;
INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at)
    SELECT domain, process_id, 'step ' || number, gen_random_uuid(), 'Type', created_at
    FROM commandbus.process, generate_series(1, 3) AS number;
"""

ONE_PROCESS = {"process_pkey"}
ONE_STATUS = {"idx_process_status_created"}
ONE_STEP = {"process_audit_command_key"}
BY_DEADLINE = {"idx_process_deadline"}
BY_KEY = {"idx_process_business_key"}
# Both keys of the trail begin with the process; which one is read does not matter.
ONE_TRAIL = {"process_audit_pkey", "process_audit_command_key"}

FEW, BACKLOG = ("WAITING",), ("COMPENSATING", "WAITING_FOR_TSQ")
CLAIMS = {
    " and ".join((f"claim of {len(statuses)}", *given)): _listing.claim(statuses, frozenset(given))
    for statuses in (FEW, BACKLOG)
    for given in ((), ("process_type",), ("updated_before",), ("process_type", "updated_before"))
}
PURGES = {
    "purge: lock": _retention.lock_due(_retention.ENDED, frozenset({"created_before", "limit"})),
    "purge: lock more": _retention.lock_due(
        _retention.ENDED, frozenset({"created_before", "limit", "after_key", "after_id"})
    ),
    "purge: delete": _retention.delete_ended(_retention.ENDED),
}
ON = frozenset({"limit", "after_key", "after_id"})
ALL = tuple(sorted(ProcessStatus))
LISTS = {
    "page of few": _pages.summaries(FEW, ON, newest_first=False, steps=False),
    "page of all, newest first": _pages.summaries(ALL, frozenset({"limit"}), newest_first=True, steps=False),
    "page by deadline": _pages.summaries(ALL, ON | {"deadline_before"}, newest_first=False, steps=False),
    "page by key": _pages.summaries(ALL, ON | {"business_key"}, newest_first=False, steps=False),
    "stream of a backlog": _pages.processes(BACKLOG, ON, newest_first=False),
    "page of candidates": _claiming.candidates(BACKLOG, frozenset[str]()),
    "page of candidates by deadline": _claiming.candidates(ALL, frozenset({"deadline_before"})),
    "count": _pages.count(ALL, frozenset({"limit"})),
    "backlog": _statistics.backlog(frozenset[str]()),
}
OTHERS = {
    "step_statistics": _statistics.step_statistics(FEW, frozenset({"created_after"})),
    "open_steps": _statistics.open_steps(FEW, frozenset({"limit"}), before=True),
}
SERVED_BY = {
    "UPDATE": ONE_PROCESS,
    "WHY_NOT_WRITTEN": ONE_PROCESS,
    "WHY_NOT_ADVANCED": ONE_PROCESS,
    "GET_BY_ID": ONE_PROCESS,
    "GET_BY_IDS": ONE_PROCESS,
    "LOG_STEP": ONE_PROCESS,
    "GET_BY_ID_LOCKING": ONE_PROCESS,
    "GET_BY_ID_UNLESS_LOCKED": ONE_PROCESS,
    "WHY_NOT_LOGGED": ONE_PROCESS | ONE_STEP,
    "RECORD_REPLY": ONE_STEP,
    "RECORD_REPLY_AND_LOCK": ONE_PROCESS | ONE_STEP,
    "WHY_NOT_RECORDED": ONE_STEP,
    "STEPS_TO_COMPENSATE": ONE_TRAIL,
    "STEPS_TO_COMPENSATE_OR_UNKNOWN": ONE_TRAIL,
    "WRITTEN_MANY": ONE_PROCESS,
    "AUDIT_TRAIL": ONE_TRAIL,
    "COMPLETED_STEPS": ONE_TRAIL,
    "WHY_NOT_ALL_SAVED": ONE_PROCESS,
    "LOG_MANY": ONE_PROCESS,
    "WHY_NOT_ALL_LOGGED": ONE_PROCESS | ONE_TRAIL,  # only after something was in the way
    "ADVANCE_ON_REPLY": ONE_PROCESS | ONE_STEP,
    "ADVANCE_WITH_ONE_SENT": ONE_PROCESS | ONE_STEP,
    "ADVANCE_ON_REPLY_WITH_ONE_SENT": ONE_PROCESS | ONE_STEP,
    "ADVANCE_WITH_SENT": ONE_PROCESS | ONE_STEP,
    "ADVANCE_ON_REPLY_WITH_SENT": ONE_PROCESS | ONE_STEP,
    "TAKE": ONE_PROCESS,
    "TRAILS": ONE_TRAIL,
    "ERASE": ONE_PROCESS | ONE_TRAIL,
    "purge: lock": ONE_STATUS | ONE_PROCESS,
    "purge: lock more": ONE_STATUS | ONE_PROCESS,
    "purge: delete": ONE_PROCESS | ONE_TRAIL,
    "find_by_status of few": ONE_STATUS,
    **{name: BY_KEY if "key" in name else BY_DEADLINE if "deadline" in name else ONE_STATUS for name in LISTS},
    "step_statistics": ONE_STATUS | ONE_TRAIL,
    "open_steps": ONE_STATUS | ONE_TRAIL,
    **{name: ONE_STATUS if "of 1" in name else ONE_STATUS | ONE_PROCESS for name in CLAIMS},
}
# They only insert: there is nothing that they would look for.
INSERTING = {"SAVE", "SAVE_WITH_ONE_SENT", "SAVE_WITH_SENT", "SAVE_MANY"}


def statement_of(name: str) -> ClauseElement:
    if name == "find_by_status of few":
        return _listing.find_by_status(FEW)
    found: ClauseElement = {**CLAIMS, **PURGES, **LISTS, **OTHERS, **STATEMENTS}[name]
    return found


@pytest.fixture(scope="module", params=["ANALYZE", "VACUUM ANALYZE"])
def filled_url(request: pytest.FixtureRequest, newest_server: Server) -> Iterator[str]:
    """A database with statistics. Without VACUUM, an index alone does not show which rows are visible."""
    with fresh_database(newest_server.url, newest_server.template) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(FILL.encode())
            connection.execute(f"{request.param} commandbus.process, commandbus.process_audit".encode())
        yield url


@pytest.fixture(scope="module")
def filled(filled_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(filled_url, autocommit=True, prepare_threshold=None) as connection:
        yield connection


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def explained(connection: psycopg.Connection, options: str, statement: str) -> list[dict[str, Any]]:
    """The nodes of the plan of a statement."""
    row = connection.execute(f"EXPLAIN ({options}, FORMAT JSON) {statement}".encode()).fetchone()
    assert row is not None
    return list(nodes((row[0] if isinstance(row[0], list) else json.loads(row[0]))[0]["Plan"]))


def numbered(statement: ClauseElement) -> tuple[str, Sequence[str]]:
    """The statement with numbers for its parameters, as it is prepared, and their names in this order."""
    found: dict[str, int] = {}
    text = re.sub(
        r"%\((\w+)\)s",
        lambda match: f"${found.setdefault(match[1], len(found) + 1)}",
        str(statement.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True})),
    )
    return text, list(found)


@pytest.mark.parametrize("name", SERVED_BY)
def test_a_statement_reads_its_index_and_no_whole_table(filled: psycopg.Connection, name: str) -> None:
    text, _ = numbered(statement_of(name))
    plan = explained(filled, "GENERIC_PLAN", text)
    used = {node["Index Name"] for node in plan if "Index Name" in node}
    assert used
    assert used <= SERVED_BY[name]
    assert not [node for node in plan if node["Node Type"] == "Seq Scan"]


def test_every_statement_that_looks_for_something_is_explained() -> None:
    assert set(STATEMENTS) == INSERTING | {name for name in SERVED_BY if name.isupper()}


def rows_read(plan: Sequence[dict[str, Any]]) -> int:
    """How many rows were taken from our tables, also those that a condition then threw away."""
    return sum(
        int(node["Actual Loops"]) * int(node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in plan
        # What a bitmap's index gives is read from the table by the node above.
        if "Scan" in node["Node Type"] and node["Node Type"] not in {"Subquery Scan", "Bitmap Heap Scan"}
    )


def plan_after_ten_executions(connection: psycopg.Connection, name: str, mode: str) -> list[dict[str, Any]]:
    """What is done the eleventh time, when the server has long decided on one plan for all values."""
    values = {
        "key_domain": "'domain 1'",
        "limit": "10",
        "process_type": "'order'",
        "updated_before": "now() + interval '1 day'",
        "deadline_before": "now()",
        "business_key": "'A-7'",
        "after_key": "'2020-01-01T00:00:00+00:00'",
        "after_id": "'00000000-0000-0000-0000-000000000000'",
    }
    text, names = numbered(statement_of(name))
    execute = f"EXECUTE prepared ({', '.join(values[each] for each in names)})"
    try:
        connection.execute(f"SET plan_cache_mode = {mode}".encode())
        connection.execute(f"PREPARE prepared AS {text}".encode())
        for _ in range(10):
            connection.execute(execute.encode())
        plan = explained(connection, "ANALYZE, TIMING OFF", execute)
        if mode == "force_generic_plan":
            counted = connection.execute("SELECT generic_plans FROM pg_prepared_statements").fetchone()
            assert counted is not None
            assert counted[0] > 10
        return plan
    finally:
        connection.execute("DEALLOCATE ALL; RESET plan_cache_mode")


MODES = ["auto", "force_generic_plan"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_reads_no_more_than_it_takes(filled: psycopg.Connection, name: str, mode: str) -> None:
    """Ten of thousands: in the order of the index, several statuses merged; nothing is sorted."""
    plan = plan_after_ten_executions(filled, name, mode)
    assert plan[0]["Actual Rows"] == 10
    # Of each status, one more than is taken; and what is taken is read once more by its key.
    assert rows_read(plan) <= 3 * 10
    sorted_rows = [node["Actual Rows"] for node in plan if "Sort" in node["Node Type"]]
    assert sorted_rows == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in LISTS if name.startswith(("page", "stream"))])
def test_a_page_reads_no_more_than_it_shows(filled: psycopg.Connection, name: str, mode: str) -> None:
    """Ten of thousands. Of each status that is merged, one row more may be read."""
    plan = plan_after_ten_executions(filled, name, mode)
    shown = plan[0]["Actual Rows"]
    assert shown == (1 if name == "page by key" else 10)
    assert rows_read(plan) <= shown + len(ProcessStatus)
    assert {node["Index Name"] for node in plan if "Index Name" in node} == SERVED_BY[name]


@pytest.mark.parametrize("mode", MODES)
def test_find_by_status_reads_what_it_returns(filled: psycopg.Connection, mode: str) -> None:
    plan = plan_after_ten_executions(filled, "find_by_status of few", mode)
    assert plan[0]["Actual Rows"] == PROCESSES / 500
    assert rows_read(plan) == PROCESSES / 500
    assert {node["Index Name"] for node in plan if "Index Name" in node} == ONE_STATUS


async def test_an_update_writes_no_index(filled_url: str, newest_server: Server) -> None:
    """The new version of a row is found through the old one (HOT), for no index has in it what each update changes.

    Unless the page is full: a transaction's own old versions are not swept out of it.
    """
    engine = create_async_engine(async_url(as_role(filled_url, newest_server.application)))
    repository = PostgresProcessRepository(engine)
    functions = ("tuples_updated", "tuples_hot_updated", "tuples_newpage_updated")
    counts = ", ".join(f"pg_stat_get_xact_{each}('commandbus.process'::regclass)" for each in functions)
    try:
        process = new_process()
        await repository.save(process)
        async with engine.begin() as conn:
            for number in range(20):
                process.state["number"] = number
                process.current_step = process.error_message = f"step {number}"
                await repository.update(process, conn)
                await repository.advance(process, conn, sent=new_entry())
            updated, hot, on_a_new_page = (await conn.execute(text(f"SELECT {counts}"))).one()
        assert updated == hot + on_a_new_page == 40
        assert on_a_new_page <= 2
    finally:
        await engine.dispose()


def test_there_is_no_index_that_serves_nothing() -> None:
    for table in (tables.process, tables.process_audit):
        named = {str(index.name) for index in table.indexes}
        named |= {
            str(constraint.name)
            for constraint in table.constraints
            if constraint.__visit_name__ in {"primary_key_constraint", "unique_constraint"}
        }
        assert named <= set().union(*SERVED_BY.values())
