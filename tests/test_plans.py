"""Each index serves a statement, each statement has its index, in the generic plan that a prepared statement gets."""

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import ClauseElement, Insert, Select, Update

from commandbus_process import _statements, tables
from tests.databases import Server, fresh_database
from tests.test_statements import DIALECT

# Most processes have ended, as in any database of some age.
FILL = """
INSERT INTO commandbus.process (domain, process_id, process_type, status, created_at)
    SELECT 'domain ' || number % 4, gen_random_uuid(), 'order',
           CASE WHEN number % 500 = 0 THEN 'WAITING' ELSE 'COMPLETED' END, now() - number * interval '1 second'
    FROM generate_series(1, 20000) AS number;
INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at)
    SELECT domain, process_id, 'step ' || number, gen_random_uuid(), 'Type', created_at
    FROM commandbus.process, generate_series(1, 3) AS number;
ANALYZE commandbus.process, commandbus.process_audit;
"""

ONE_PROCESS = {"process_pkey"}
ONE_STATUS = {"idx_process_status_created"}
ONE_STEP = {"process_audit_command_key"}
# Both keys of the trail begin with the process; which one is read does not matter.
ONE_TRAIL = {"process_audit_pkey", "process_audit_command_key"}

SERVED_BY = {
    "UPDATE": ONE_PROCESS,
    "UPDATE_IF_UNCHANGED": ONE_PROCESS,
    "VERSION": ONE_PROCESS,
    "GET_BY_ID": ONE_PROCESS,
    "LOG_STEP": ONE_PROCESS,
    "GET_BY_ID_LOCKING": ONE_PROCESS,
    "GET_BY_ID_UNLESS_LOCKED": ONE_PROCESS,
    "FIND_BY_STATUS": ONE_STATUS,
    "CLAIM": ONE_STATUS,
    "LOGGED_STEP": ONE_PROCESS | ONE_STEP,
    "RECORD_REPLY": ONE_STEP,
    "RECORDED_REPLY": ONE_STEP,
    "AUDIT_TRAIL": ONE_TRAIL,
    "COMPLETED_STEPS": ONE_TRAIL,
}


@pytest.fixture(scope="module")
def filled(newest_server: Server) -> Iterator[psycopg.Connection]:
    with (
        fresh_database(newest_server.url, newest_server.template) as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        connection.execute(FILL.encode())
        yield connection


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def generic_plan(connection: psycopg.Connection, statement: ClauseElement) -> list[dict[str, Any]]:
    if "statuses" in str(statement):
        listing = cast("Select[Any]", statement)
        statement = listing.params(statuses=["WAITING"], key_domain="", limit=10)
    text = str(statement.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True}))
    numbers: dict[str, int] = {}
    text = re.sub(r"%\((\w+)\)s", lambda match: f"${numbers.setdefault(match[1], len(numbers) + 1)}", text)
    row = connection.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {text}".encode()).fetchone()
    assert row is not None
    return list(nodes((row[0] if isinstance(row[0], list) else json.loads(row[0]))[0]["Plan"]))


@pytest.mark.parametrize("name", SERVED_BY)
def test_a_statement_reads_its_index_and_no_whole_table(filled: psycopg.Connection, name: str) -> None:
    plan = generic_plan(filled, getattr(_statements, name))
    used = {node["Index Name"] for node in plan if "Index Name" in node}
    assert used
    assert used <= SERVED_BY[name]
    assert not [node for node in plan if node["Node Type"] == "Seq Scan"]


def test_every_statement_but_a_plain_insert_is_explained() -> None:
    statements = {name for name, value in vars(_statements).items() if isinstance(value, Select | Update | Insert)}
    assert {name for name in statements if not name.startswith("_")} - {"SAVE"} == set(SERVED_BY)


def test_there_is_no_index_that_serves_nothing() -> None:
    for table in (tables.process, tables.process_audit):
        named = {str(index.name) for index in table.indexes}
        named |= {
            str(constraint.name)
            for constraint in table.constraints
            if constraint.__visit_name__ in {"primary_key_constraint", "unique_constraint"}
        }
        assert named <= set().union(*SERVED_BY.values())
