"""The statements, compiled without a database and compared with the SQL that we mean them to be."""

import re

import pytest
from sqlalchemy import ClauseElement
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import _statements

DIALECT = create_async_engine("postgresql+psycopg://").dialect
PROCESS = (
    "domain, process_id, process_type, status, current_step, CAST(state AS TEXT) AS state, error_code, error_message, "
    "created_at, updated_at, completed_at, version"
)
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
UPDATE = (
    "UPDATE process SET status=:status, current_step=:current_step, state=CAST(:state AS JSONB), "
    "error_code=:error_code, error_message=:error_message, updated_at=now(), completed_at=:completed_at, "
    "version=(version + :version_1) WHERE domain = :key_domain AND process_id = :key_process_id"
)
FIND_BY_STATUS = (
    f"SELECT {PROCESS} FROM process WHERE domain = :key_domain "
    "AND status IN (__[POSTCOMPILE_statuses]) ORDER BY created_at, process_id"
)

EXPECTED = {
    "SAVE": "INSERT INTO process (domain, process_id, process_type, status, current_step, state, error_code, "
    "error_message, created_at, updated_at, completed_at) VALUES (:domain, :process_id, :process_type, :status, "
    ":current_step, CAST(:state AS JSONB), :error_code, :error_message, :created_at, :updated_at, :completed_at) "
    "ON CONFLICT DO NOTHING RETURNING version",
    "UPDATE": f"{UPDATE} RETURNING updated_at, version",
    "UPDATE_IF_UNCHANGED": f"{UPDATE} AND version = :key_version RETURNING updated_at, version",
    "VERSION": "SELECT version, process_type FROM process WHERE domain = :key_domain AND process_id = :key_process_id",
    "GET_BY_ID": f"SELECT {PROCESS} FROM process WHERE domain = :key_domain AND process_id = :key_process_id",
    "GET_BY_ID_LOCKING": f"SELECT {PROCESS} FROM process WHERE domain = :key_domain AND process_id = :key_process_id "
    "FOR NO KEY UPDATE",
    "GET_BY_ID_UNLESS_LOCKED": f"SELECT {PROCESS} FROM process WHERE domain = :key_domain "
    "AND process_id = :key_process_id FOR NO KEY UPDATE SKIP LOCKED",
    "FIND_BY_STATUS": FIND_BY_STATUS,
    "CLAIM": f"{FIND_BY_STATUS} LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED",
    "IS_OF_TYPE": "process_type = :key_process_type",
    "IS_UPDATED_BEFORE": "updated_at < :updated_before",
    "LOG_STEP": "INSERT INTO process_audit (domain, process_id, step_name, command_id, command_type, command_data, "
    "sent_at, reply_outcome, reply_data, received_at) SELECT domain, process_id, :step_name, :command_id, "
    ":command_type, CAST(:command_data AS JSONB), :sent_at, :reply_outcome, CAST(:reply_data AS JSONB), :received_at "
    "FROM process WHERE domain = :key_domain AND process_id = :key_process_id FOR KEY SHARE "
    "ON CONFLICT DO NOTHING RETURNING id",
    "LOGGED_STEP": f"SELECT {ENTRY}, step_name IS NOT DISTINCT FROM :step_name AND command_type IS NOT DISTINCT FROM "
    f":command_type AND {COMMAND_DATA} IS NOT DISTINCT FROM CAST(:command_data AS JSONB) "
    f"AND (:reply_outcome IS NULL OR {SAME_REPLY}) AS same FROM process LEFT OUTER JOIN process_audit "
    "ON audit.domain = process.domain AND audit.process_id = process.process_id AND command_id = :key_command_id "
    "WHERE domain = :key_domain AND process_id = :key_process_id",
    "RECORD_REPLY": "UPDATE process_audit SET reply_outcome=:reply_outcome, reply_data=CAST(:reply_data AS JSONB), "
    "received_at=:received_at WHERE domain = :key_domain AND process_id = :key_process_id "
    "AND command_id = :key_command_id AND reply_outcome IS NULL RETURNING id",
    "RECORDED_REPLY": f"SELECT {ENTRY}, {SAME_REPLY} AS same FROM process_audit WHERE domain = :key_domain "
    "AND process_id = :key_process_id AND command_id = :key_command_id",
    "AUDIT_TRAIL": f"SELECT {ENTRY} FROM process_audit WHERE domain = :key_domain "
    "AND process_id = :key_process_id ORDER BY sent_at, id",
    "COMPLETED_STEPS": "SELECT step_name FROM process_audit WHERE domain = :key_domain "
    "AND process_id = :key_process_id AND reply_outcome = :reply_outcome_1 ORDER BY sent_at, id",
}


def compiled(statement: ClauseElement) -> str:
    """The statement on one line, without what a reader of it can do without: casts of parameters, the tables' names."""
    text = " ".join(str(statement.compile(dialect=DIALECT)).split())
    text = re.sub(r"%\((\w+)\)s(::(TIMESTAMP WITH TIME ZONE|\w+)(\[\])?)?", r":\1", text)
    text = re.sub(r" AS anon_\d+", "", text)
    joined = re.compile(r"commandbus\.process_audit\.(domain|process_id) = commandbus\.process\.(domain|process_id)")
    text = joined.sub(r"audit.\1 = process.\2", text)
    assert text.count("commandbus.process") >= 1, "a table is not qualified with its schema"
    return re.sub(r"commandbus\.(process_audit\.|process\.)?", "", text)


def test_every_statement_has_an_expectation() -> None:
    named = {name for name, value in vars(_statements).items() if name.isupper() and isinstance(value, ClauseElement)}
    assert {name for name in named if not name.startswith("_")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_statement(name: str) -> None:
    assert compiled(getattr(_statements, name)) == EXPECTED[name]


def test_statuses_are_written_into_the_statement() -> None:
    statement = _statements.FIND_BY_STATUS.params(statuses=["WAITING", "FAILED"], key_domain="orders")
    text = str(statement.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True}))
    assert "status IN ('WAITING', 'FAILED')" in text
