"""Each revision says which code works with it. The code of the revision before goes on working on the new schema.

Nothing is released yet, so that code is the SQL that the library sent before the newest revision, in
tests/sql/before_commandbus_0005.
"""

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine

from commandbus_process.migrations import REVISIONS, upgrade
from commandbus_process.migrations._history import scripts
from commandbus_process.tables import REVISION
from tests.support import ROOT
from tests.support.databases import async_url

FOLDER = ROOT / "tests/sql/before_commandbus_0005"
BEFORE = REVISIONS[-2]
PROCESS, COMMAND = UUID(int=1), UUID(int=7)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "domain": "orders", "process_id": PROCESS, "process_type": "order", "status": "WAITING", "current_step": "charge",
    "state": '{"total": 12}', "error_code": None, "error_message": None, "created_at": NOON, "updated_at": NOON,
    "completed_at": None, "key_domain": "orders", "key_process_id": PROCESS, "key_process_type": "order",
    "key_version": 1, "key_stamp": None, "key_command_id": COMMAND, "step_name": "charge", "command_id": COMMAND,
    "command_type": "Charge", "command_data": '{"amount": 12}', "sent_at": NOON, "reply_outcome": None,
    "reply_data": None, "received_at": None, "compensates": None,
}  # fmt: skip
REPLY = {"reply_outcome": "SUCCESS", "reply_data": '{"ok": true}', "received_at": NOON}


def test_each_revision_says_what_it_does_and_which_code_works_with_it() -> None:
    for position, name in enumerate(REVISIONS):
        module: Any = scripts().get_revision(name).module
        assert module.kind in {"expand", "contract"}
        assert module.works_with_code_since in REVISIONS[: position + 1]
        if module.kind == "expand" and position:
            assert module.works_with_code_since <= REVISIONS[position - 1]


def test_the_newest_revision_is_the_one_that_the_tables_are_declared_for() -> None:
    assert scripts().get_heads() == [REVISION]
    assert [script.revision for script in scripts().walk_revisions()][::-1] == list(REVISIONS)


@pytest.mark.parametrize("to", [BEFORE, REVISION])
def test_the_eight_operations_of_the_code_before(empty_database_url: str, to: str) -> None:
    engine = create_engine(async_url(empty_database_url))
    with engine.begin() as connection:
        upgrade(connection, to)
    engine.dispose()
    with psycopg.connect(empty_database_url) as session, session.cursor(row_factory=dict_row) as cursor:

        def run(name: str, **values: object) -> psycopg.Cursor[dict[str, Any]]:
            text = re.sub(r"(?<!:):(\w+)", r"%(\1)s", (FOLDER / f"{name}.sql").read_text())
            return cursor.execute(text.encode(), {**VALUES, **values})

        assert run("save").rowcount == 1
        assert run("save").rowcount == 0
        assert run("log_step").rowcount == 1
        assert run("log_step").rowcount == 0
        assert run("record_reply", **REPLY).rowcount == 1
        assert run("record_reply", **REPLY).rowcount == 0
        assert run("update", current_step="ship").rowcount == 1
        assert run("update", current_step="pack").rowcount == 0
        [found] = run("get_by_id").fetchall()
        assert found["state"] == '{"total": 12}'
        assert '"ship"' in found["fields"]
        [listed] = run("find_by_status_one").fetchall()
        assert (listed["process_id"], listed["version"]) == (PROCESS, 2)
        [entry] = run("audit_trail").fetchall()
        assert (entry["command_id"], entry["reply_outcome"]) == (COMMAND, "SUCCESS")
        assert run("completed_steps").fetchall() == [{"step_name": "charge"}]
