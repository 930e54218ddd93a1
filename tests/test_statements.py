"""The statements, compiled without a database and compared with the SQL that we mean them to be."""

import re
from collections.abc import Collection

import pytest
from sqlalchemy import ClauseElement
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import ProcessStatus, _statements
from commandbus_process._input import status_values

DIALECT = create_async_engine("postgresql+psycopg://").dialect


def unqualified(sql: str) -> str:
    return sql.replace("process.", "")


def listed(names: str, source: str) -> str:
    """The columns, each with the name of what it is read from."""
    return ", ".join(f"{source}.{name}" for name in names.split(", "))


NEW_PROCESS = (
    "domain, process_id, process_type, status, current_step, state, error_code, error_message, created_at, updated_at, "
    "completed_at"
)
NEW_STEP = (
    "domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, "
    "received_at"
)
PROCESS = (
    "domain, process_id, process_type, status, current_step, CAST(state AS TEXT) AS state, error_code, error_message, "
    "created_at, updated_at, completed_at, version"
)
ONE_PROCESS = (
    "CAST(json_build_array(domain, process_type, status, current_step, error_code, error_message, "
    "created_at, updated_at, completed_at, version) AS TEXT) AS fields, CAST(state AS TEXT) AS state"
)
FOUND_PROCESS = listed(PROCESS, "found").replace("found.CAST(state", "CAST(found.state")
OF_PROCESS = listed(PROCESS, "process").replace("process.CAST(state", "CAST(process.state")
IS_PROCESS = "domain = :key_domain AND process_id = :key_process_id"
COMMAND_DATA = "nullif(command_data, CAST('null' AS JSONB))"
REPLY_DATA = "nullif(reply_data, CAST('null' AS JSONB))"
ENTRY = (
    f"step_name, command_id, command_type, CAST({COMMAND_DATA} AS TEXT) AS command_data, sent_at, reply_outcome, "
    f"CAST({REPLY_DATA} AS TEXT) AS reply_data, received_at"
)
SAME_REPLY = (
    "reply_outcome IS NOT DISTINCT FROM :reply_outcome "
    f"AND {REPLY_DATA} IS NOT DISTINCT FROM CAST(:reply_data AS JSONB)"
)

# Of a join, each column has the name of its table.
LOGGED_COMMAND_DATA = "nullif(process_audit.command_data, CAST('null' AS JSONB))"
LOGGED_REPLY_DATA = "nullif(process_audit.reply_data, CAST('null' AS JSONB))"
LOGGED_ENTRY = (
    "process_audit.step_name, process_audit.command_id, process_audit.command_type, "
    f"CAST({LOGGED_COMMAND_DATA} AS TEXT) AS command_data, process_audit.sent_at, process_audit.reply_outcome, "
    f"CAST({LOGGED_REPLY_DATA} AS TEXT) AS reply_data, process_audit.received_at"
)
IS_JOINED_PROCESS = "process.domain = :key_domain AND process.process_id = :key_process_id"

# Where neither a version nor a type is given, whatever there is will do.
AS_EXPECTED = (
    f"{IS_JOINED_PROCESS} AND process.version = coalesce(:key_version, process.version) "
    "AND process.process_type = coalesce(:key_process_type, process.process_type)"
)
CHANGES = (
    "status=:status, current_step=:current_step, state=CAST(:state AS JSONB), "
    "error_code=:error_code, error_message=:error_message, updated_at=now(), completed_at=:completed_at, "
    "version=(process.version + 1)"
)
REPLY = "reply_outcome=:reply_outcome, reply_data=CAST(:reply_data AS JSONB), received_at=:received_at"

# The types of the columns, of which the rows in a JSON parameter are made.
NEW_PROCESS_TYPES = (
    "position INTEGER, domain VARCHAR(255), process_id UUID, process_type VARCHAR(255), status VARCHAR(50), "
    "current_step VARCHAR(255), state JSONB, error_code VARCHAR(255), error_message TEXT, "
    "created_at TIMESTAMP WITH TIME ZONE, updated_at TIMESTAMP WITH TIME ZONE, completed_at TIMESTAMP WITH TIME ZONE"
)
ENTRY_TYPES = (
    "step_name VARCHAR(255), command_id UUID, command_type VARCHAR(255), command_data JSONB, "
    "sent_at TIMESTAMP WITH TIME ZONE, reply_outcome VARCHAR(50), reply_data JSONB, "
    "received_at TIMESTAMP WITH TIME ZONE"
)
PROCESSES = f"pg_catalog.json_to_recordset(CAST(:processes AS JSON)) AS given_processes({NEW_PROCESS_TYPES})"
STEPS = (
    "pg_catalog.json_to_recordset(CAST(:steps AS JSON)) "
    f"AS given_steps(position INTEGER, domain VARCHAR(255), process_id UUID, {ENTRY_TYPES})"
)
SENT = f"pg_catalog.json_to_recordset(CAST(:sent AS JSON)) AS given_sent(position INTEGER, {ENTRY_TYPES})"

NONE_IS_LOGGED = (
    f"NOT (EXISTS (SELECT 1 FROM {SENT} WHERE (SELECT process_audit.id FROM process_audit "
    "WHERE process_audit.domain = :key_domain AND process_audit.process_id = :key_process_id "
    "AND process_audit.command_id = given_sent.command_id) IS NOT NULL))"
)
STEP_IS_OPEN = "step.command_id = :key_command_id AND step.reply_outcome IS NULL"
WITH_STEP = "JOIN process_audit AS step ON step.domain = process.domain AND step.process_id = process.process_id"
LOGGED = (
    f"logged AS (INSERT INTO process_audit ({NEW_STEP}) SELECT held.domain, held.process_id, "
    f"{listed(NEW_STEP.removeprefix('domain, process_id, '), 'given_sent')} FROM held JOIN {SENT} ON true "
    "ORDER BY given_sent.position ON CONFLICT DO NOTHING RETURNING process_audit.id)"
)
ONE_LOGGED = (
    f"logged AS (INSERT INTO process_audit ({NEW_STEP}) SELECT held.domain, held.process_id, "
    ":sent_step_name, :sent_command_id, :sent_command_type, "
    "CAST(:sent_command_data AS JSONB), :sent_sent_at, :sent_reply_outcome, "
    "CAST(:sent_reply_data AS JSONB), :sent_received_at FROM held "
    "ON CONFLICT DO NOTHING RETURNING process_audit.id)"
)
ONE_WAS_LOGGED = "(SELECT count(*) FROM logged) = 1"
ALL_LOGGED = "(SELECT count(*) FROM logged) = :sent_count"
REPLIED = (
    f"replied AS (UPDATE process_audit SET {REPLY} FROM held WHERE process_audit.domain = held.domain "
    "AND process_audit.process_id = held.process_id AND process_audit.command_id = :key_command_id"
)


def advance(held: str, *parts: str, changed_if: str, written: str) -> str:
    """What must hold, the parts that are written before the process, what they are counted for, and their number."""
    changed = (
        f"changed AS (UPDATE process SET {CHANGES} FROM held WHERE process.domain = held.domain "
        f"AND process.process_id = held.process_id AND {changed_if} RETURNING process.updated_at, process.version)"
    )
    return (
        f"WITH {', '.join([f'held AS (SELECT process.domain, process.process_id FROM {held})', *parts, changed])} "
        "SELECT changed.updated_at, changed.version FROM (SELECT 1) AS one_row LEFT OUTER JOIN changed ON true "
        f"WHERE CASE WHEN (changed.version IS NOT NULL) THEN true WHEN ({written} = 0) THEN false "
        f"ELSE CAST('only a part could be written: ' || CAST({written} AS TEXT) AS BOOLEAN) END"
    )


EXPECTED = {
    "SAVE": f"INSERT INTO process ({NEW_PROCESS}) VALUES (:domain, :process_id, :process_type, :status, "
    ":current_step, CAST(:state AS JSONB), :error_code, :error_message, :created_at, :updated_at, :completed_at) "
    "ON CONFLICT DO NOTHING",
    "UPDATE": unqualified(
        f"UPDATE process SET {CHANGES} WHERE {AS_EXPECTED} RETURNING process.updated_at, process.version"
    ),
    "VERSION": f"SELECT version, process_type FROM process WHERE {IS_PROCESS}",
    "UPDATED_PROCESS": "SELECT version, process_type, updated_at, status IS NOT DISTINCT FROM :status "
    "AND current_step IS NOT DISTINCT FROM :current_step AND state IS NOT DISTINCT FROM CAST(:state AS JSONB) "
    "AND error_code IS NOT DISTINCT FROM :error_code AND error_message IS NOT DISTINCT FROM :error_message "
    f"AND completed_at IS NOT DISTINCT FROM :completed_at AS same FROM process WHERE {IS_PROCESS}",
    "GET_BY_ID": f"SELECT {ONE_PROCESS} FROM process WHERE {IS_PROCESS}",
    "GET_BY_ID_LOCKING": f"SELECT {ONE_PROCESS} FROM process WHERE {IS_PROCESS} FOR NO KEY UPDATE",
    "GET_BY_ID_UNLESS_LOCKED": f"SELECT {ONE_PROCESS} FROM process WHERE {IS_PROCESS} FOR NO KEY UPDATE SKIP LOCKED",
    "LOG_STEP": f"INSERT INTO process_audit ({NEW_STEP}) SELECT domain, process_id, :step_name, :command_id, "
    ":command_type, CAST(:command_data AS JSONB), :sent_at, :reply_outcome, CAST(:reply_data AS JSONB), :received_at "
    f"FROM process WHERE {IS_PROCESS} FOR KEY SHARE ON CONFLICT DO NOTHING",
    "LOGGED_STEP": f"SELECT {LOGGED_ENTRY}, process_audit.step_name IS NOT DISTINCT FROM :step_name "
    "AND process_audit.command_type IS NOT DISTINCT FROM :command_type "
    f"AND {LOGGED_COMMAND_DATA} IS NOT DISTINCT FROM CAST(:command_data AS JSONB) "
    "AND (:reply_outcome IS NULL OR process_audit.reply_outcome IS NOT DISTINCT FROM :reply_outcome "
    f"AND {LOGGED_REPLY_DATA} IS NOT DISTINCT FROM CAST(:reply_data AS JSONB)) AS same "
    "FROM process LEFT OUTER JOIN process_audit ON process_audit.domain = process.domain "
    "AND process_audit.process_id = process.process_id AND process_audit.command_id = :key_command_id "
    f"WHERE {IS_JOINED_PROCESS}",
    "RECORD_REPLY": f"UPDATE process_audit SET {REPLY} WHERE {IS_PROCESS} AND command_id = :key_command_id "
    "AND reply_outcome IS NULL",
    "RECORDED_REPLY": f"SELECT {ENTRY}, {SAME_REPLY} AS same FROM process_audit WHERE {IS_PROCESS} "
    "AND command_id = :key_command_id",
    "AUDIT_TRAIL": f"SELECT {ENTRY} FROM process_audit WHERE {IS_PROCESS} ORDER BY sent_at, id",
    "COMPLETED_STEPS": f"SELECT step_name FROM process_audit WHERE {IS_PROCESS} AND reply_outcome = :reply_outcome_1 "
    "ORDER BY sent_at, id",
    "SAVE_MANY": "WITH "
    f"given AS (SELECT {listed(f'position, {NEW_PROCESS}', 'given_processes')} FROM {PROCESSES}), "
    f"saved AS (INSERT INTO process ({NEW_PROCESS}) SELECT {listed(NEW_PROCESS, 'given')} FROM given "
    "ORDER BY given.position ON CONFLICT (domain, process_id) DO NOTHING "
    "RETURNING process.domain, process.process_id) "
    "SELECT given.position FROM given WHERE NOT (EXISTS (SELECT 1 FROM saved WHERE saved.domain = given.domain "
    "AND saved.process_id = given.process_id)) ORDER BY given.position",
    "TAKEN_OF_MANY": "SELECT given_processes.position FROM pg_catalog.json_to_recordset(CAST(:processes AS JSON)) "
    "AS given_processes(position INTEGER, domain VARCHAR(255), process_id UUID) "
    "JOIN process ON process.domain = given_processes.domain AND process.process_id = given_processes.process_id",
    "LOG_MANY": f"INSERT INTO process_audit ({NEW_STEP}) SELECT {listed(NEW_STEP, 'given_steps')} FROM {STEPS} "
    "JOIN process ON process.domain = given_steps.domain AND process.process_id = given_steps.process_id "
    "ORDER BY given_steps.position FOR KEY SHARE OF process "
    "ON CONFLICT (domain, process_id, command_id) DO NOTHING",
    "LOGGED_MANY": f"SELECT given_steps.position, process.process_id, {LOGGED_ENTRY} FROM {STEPS} "
    "LEFT OUTER JOIN process ON process.domain = given_steps.domain AND process.process_id = given_steps.process_id "
    "LEFT OUTER JOIN process_audit ON process_audit.domain = given_steps.domain "
    "AND process_audit.process_id = given_steps.process_id AND process_audit.command_id = given_steps.command_id "
    "WHERE coalesce(process_audit.step_name IS NOT DISTINCT FROM given_steps.step_name "
    "AND process_audit.command_type IS NOT DISTINCT FROM given_steps.command_type "
    f"AND {LOGGED_COMMAND_DATA} IS NOT DISTINCT FROM given_steps.command_data "
    "AND (given_steps.reply_outcome IS NULL "
    "OR process_audit.reply_outcome IS NOT DISTINCT FROM given_steps.reply_outcome "
    f"AND {LOGGED_REPLY_DATA} IS NOT DISTINCT FROM given_steps.reply_data), false) IS false",
    "ADVANCE_ON_REPLY": advance(
        f"process {WITH_STEP} WHERE {AS_EXPECTED} AND {STEP_IS_OPEN} FOR NO KEY UPDATE OF step, process",
        f"{REPLIED} RETURNING process_audit.id)",
        changed_if="(SELECT count(*) FROM replied) = 1",
        written="(SELECT count(*) FROM replied)",
    ),
    "ADVANCE_WITH_ONE_SENT": advance(
        f"process WHERE {AS_EXPECTED} FOR NO KEY UPDATE OF process",
        ONE_LOGGED,
        changed_if=ONE_WAS_LOGGED,
        written="(SELECT count(*) FROM logged)",
    ),
    "ADVANCE_ON_REPLY_WITH_ONE_SENT": advance(
        f"process {WITH_STEP} WHERE {AS_EXPECTED} AND {STEP_IS_OPEN} FOR NO KEY UPDATE OF step, process",
        ONE_LOGGED,
        f"{REPLIED} AND {ONE_WAS_LOGGED} RETURNING process_audit.id)",
        changed_if="(SELECT count(*) FROM replied) = 1",
        written="(SELECT count(*) FROM logged) + (SELECT count(*) FROM replied)",
    ),
    "ADVANCE_WITH_SENT": advance(
        f"process WHERE {AS_EXPECTED} AND {NONE_IS_LOGGED} FOR NO KEY UPDATE OF process",
        LOGGED,
        changed_if=ALL_LOGGED,
        written="(SELECT count(*) FROM logged)",
    ),
    "ADVANCE_ON_REPLY_WITH_SENT": advance(
        f"process {WITH_STEP} WHERE {AS_EXPECTED} AND {STEP_IS_OPEN} AND {NONE_IS_LOGGED} "
        "FOR NO KEY UPDATE OF step, process",
        LOGGED,
        f"{REPLIED} AND {ALL_LOGGED} RETURNING process_audit.id)",
        changed_if="(SELECT count(*) FROM replied) = 1",
        written="(SELECT count(*) FROM logged) + (SELECT count(*) FROM replied)",
    ),
}


def compiled(statement: ClauseElement) -> str:
    """The statement on one line, without what a reader of it can do without.

    That is: casts of parameters, the schema, new names that are the old ones, and, where all columns are of one table,
    its name.
    """
    text = " ".join(str(statement.compile(dialect=DIALECT)).split())
    assert not re.search(r"\b(FROM|JOIN|INTO|UPDATE) process", text), "a table is not qualified with its schema"
    text = re.sub(r"%\((\w+)\)s(::(TIMESTAMP WITH TIME ZONE|\w+)(\[\])?)?", r":\1", text)
    text = text.replace("commandbus.", "")
    text = re.sub(r"\b(\w+)\.(\w+) AS \2\b", r"\1.\2", text)
    text = re.sub(r"count\(\*\) AS count_\d+", "count(*)", text)
    text = re.sub(r" AS anon_\d+", "", text)
    sources = set(re.findall(r"\b([a-z_]+)\.", text))
    return text.replace(f"{sources.pop()}.", "") if len(sources) == 1 else text


def test_every_statement_has_an_expectation() -> None:
    named = {name for name, value in vars(_statements).items() if name.isupper() and isinstance(value, ClauseElement)}
    assert {name for name in named if not name.startswith("_")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_statement(name: str) -> None:
    assert compiled(getattr(_statements, name)) == EXPECTED[name]


# Statuses are written into the statement: a plan that is kept for all values of a parameter would not know them.
@pytest.mark.parametrize(
    ("statuses", "condition"),
    [
        (("WAITING",), "process.status = 'WAITING'"),
        (("COMPENSATING", "FAILED", "WAITING"), "process.status IN ('COMPENSATING', 'FAILED', 'WAITING')"),
    ],
)
def test_find_by_status(statuses: tuple[str, ...], condition: str) -> None:
    assert compiled(_statements.find_by_status(statuses)) == (
        f"SELECT {FOUND_PROCESS} FROM (SELECT {listed(f'{NEW_PROCESS}, version', 'process')} FROM process "
        f"WHERE process.domain = :key_domain AND {condition} ORDER BY process.created_at, process.process_id) AS found "
        "ORDER BY found.created_at, found.process_id"
    )


OF_TYPE = "process_type = :key_process_type"
UPDATED_BEFORE = "updated_at < :updated_before"
LOCKED = "LIMIT :limit FOR NO KEY UPDATE OF process SKIP LOCKED"


def qualified_and(*conditions: str) -> str:
    return " AND ".join(f"process.{condition}" for condition in conditions)


@pytest.mark.parametrize(
    ("of_type", "updated_before", "conditions"),
    [
        (False, False, []),
        (True, False, [OF_TYPE]),
        (False, True, [UPDATED_BEFORE]),
        (True, True, [OF_TYPE, UPDATED_BEFORE]),
    ],
)
def test_claim(*, of_type: bool, updated_before: bool, conditions: list[str]) -> None:
    one = compiled(_statements.claim(("WAITING",), of_type=of_type, updated_before=updated_before))
    where = " AND ".join(["domain = :key_domain", "status = 'WAITING'", *conditions])
    assert one == f"SELECT {PROCESS} FROM process WHERE {where} ORDER BY created_at, process_id {LOCKED}"

    several = compiled(_statements.claim(("FAILED", "WAITING"), of_type=of_type, updated_before=updated_before))
    # Each status in the order of its index. Its limit is none; but where the server cannot know that, it reads in this
    # order as if few rows were wanted, and does not sort all that match.
    members = [
        "(SELECT process.domain, process.process_id, process.created_at FROM process WHERE "
        + qualified_and("domain = :key_domain", f"status = '{status}'", *conditions)
        + " ORDER BY process.created_at, process.process_id LIMIT (SELECT NULL::bigint))"
        for status in ("FAILED", "WAITING")
    ]
    assert several == (
        f"SELECT {OF_PROCESS} FROM ({' UNION ALL '.join(members)}) AS candidate "
        "JOIN process ON candidate.domain = process.domain AND candidate.process_id = process.process_id WHERE "
        + qualified_and("domain = :key_domain", "status IN ('FAILED', 'WAITING')", *conditions)
        + f" ORDER BY candidate.created_at, candidate.process_id {LOCKED}"
    )


def test_only_what_is_a_status_gets_into_a_statement() -> None:
    smuggled = ("WAITING' OR 'a' = 'a",)
    with pytest.raises(ValueError, match="is not a valid ProcessStatus"):
        _statements.find_by_status(smuggled)
    with pytest.raises(ValueError, match="is not a valid ProcessStatus"):
        _statements.claim((*smuggled, "WAITING"), of_type=False, updated_before=False)


@pytest.mark.parametrize(
    "statuses",
    [
        [ProcessStatus.WAITING_FOR_REPLY, ProcessStatus.FAILED],
        [ProcessStatus.FAILED, ProcessStatus.WAITING_FOR_REPLY, ProcessStatus.FAILED],
        {ProcessStatus.FAILED, ProcessStatus.WAITING_FOR_REPLY},
    ],
    ids=["one order", "the other, and one twice", "none"],
)
def test_statuses_in_whatever_order_are_one_statement(statuses: Collection[ProcessStatus]) -> None:
    """Which is prepared once."""
    assert _statements.find_by_status(status_values(statuses)) is _statements.find_by_status(("FAILED", "WAITING"))
    claims = [
        _statements.claim(each, of_type=False, updated_before=True)
        for each in (status_values(statuses), ("FAILED", "WAITING"))
    ]
    assert claims[0] is claims[1]
