"""The logger `commandbus_process` reports what happened, with the facts in `extra`, and no state, payload or URL."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessLockedError,
    ProcessMetadata,
    run_in_transaction,
)
from commandbus_process import _log as log
from tests.support.databases import async_url, execute
from tests.support.items import DOMAIN

Repository = PostgresProcessRepository[JsonObject]

MARK = "only in the state"

LOSING_TWICE = """
CREATE SEQUENCE attempt;
CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A sequence goes on counting after a rollback.
    IF nextval('attempt') <= 2 THEN RAISE 'lost' USING ERRCODE = '{}'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER lose BEFORE UPDATE ON commandbus.process FOR EACH ROW EXECUTE FUNCTION lose();
"""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(database_url))
    yield engine
    await engine.dispose()


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """What is logged in the test. (`caplog.records` are others before the test and in it.)"""
    caplog.set_level(logging.DEBUG, "commandbus_process")
    kept = Kept()
    logging.getLogger("commandbus_process").addHandler(kept)
    yield kept.records
    logging.getLogger("commandbus_process").removeHandler(kept)


@pytest.fixture
async def secret_process(engine: AsyncEngine, process: ProcessMetadata) -> ProcessMetadata:
    process.state = {"secret": MARK}
    await Repository(engine).save(process)
    return process


def facts(record: logging.LogRecord) -> dict[str, object]:
    """What `extra` has added to a record."""
    usual = vars(logging.makeLogRecord({})).keys() | {"message", "taskName"}
    return {name: value for name, value in vars(record).items() if name not in usual}


def assert_tells_no_state(records: list[logging.LogRecord], engine: AsyncEngine) -> None:
    for record in records:
        told = f"{record.getMessage()} {vars(record)}"
        assert MARK not in told
        assert str(engine.url.database) not in told


@pytest.mark.own_database
@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_lost_race_of_a_method_without_a_connection(
    engine: AsyncEngine,
    database_url: str,
    secret_process: ProcessMetadata,
    records: list[logging.LogRecord],
    sqlstate: str,
) -> None:
    execute(database_url, LOSING_TWICE.format(sqlstate))
    await Repository(engine).update(secret_process)
    assert [(record.name, record.levelno) for record in records] == [("commandbus_process", logging.DEBUG)] * 2
    key = {"domain": DOMAIN, "process_id": secret_process.process_id}
    assert [facts(record) for record in records] == [
        {"attempt": 1, "sqlstate": sqlstate, **key},
        {"attempt": 2, "sqlstate": sqlstate, **key},
    ]
    assert_tells_no_state(records, engine)


@pytest.mark.own_database
async def test_a_transaction_that_is_run_again(
    engine: AsyncEngine, database_url: str, secret_process: ProcessMetadata, records: list[logging.LogRecord]
) -> None:
    execute(database_url, LOSING_TWICE.format("40001"))
    update = text("UPDATE commandbus.process SET state = jsonb_build_object('secret', cast(:secret AS text))")

    async def work(conn: AsyncConnection) -> None:
        if not records:
            raise ProcessLockedError(DOMAIN, secret_process.process_id)
        await conn.execute(update, {"secret": MARK})

    await run_in_transaction(engine, work)
    assert [(record.name, record.levelno) for record in records] == [("commandbus_process", logging.INFO)] * 3
    lost = {"error": "TransactionConflictError", "sqlstate": "40001", "domain": None, "process_id": None}
    key = {"domain": DOMAIN, "process_id": secret_process.process_id}
    assert [facts(record) for record in records] == [
        {"attempt": 1, "error": "ProcessLockedError", "sqlstate": None, **key},
        {"attempt": 2, **lost},
        {"attempt": 3, **lost},
    ]
    assert_tells_no_state(records, engine)


async def test_a_connection_that_is_not_given_back(
    engine: AsyncEngine, secret_process: ProcessMetadata, records: list[logging.LogRecord]
) -> None:
    """Here a listener has begun a transaction that the library does not know of. The connection must not be reused."""

    def begin(_connection: object, cursor: Any, *_: object) -> None:
        cursor.execute("BEGIN")

    event.listen(engine.sync_engine, "before_cursor_execute", begin)
    with pytest.raises(InvalidRequestError):
        await Repository(engine).update(secret_process)
    [record] = records
    assert (record.name, record.levelno) == ("commandbus_process", logging.INFO)
    assert facts(record) == {"reason": "ProgrammingError"}
    assert_tells_no_state(records, engine)


def test_a_redelivery(records: list[logging.LogRecord]) -> None:
    process_id, command_id = uuid4(), uuid4()
    log.redelivered("log_step", DOMAIN, process_id, command_id)
    log.redelivered("advance", DOMAIN, process_id)
    assert [facts(record) for record in records] == [
        {"operation": "log_step", "domain": DOMAIN, "process_id": process_id, "command_id": command_id},
        {"operation": "advance", "domain": DOMAIN, "process_id": process_id, "command_id": None},
    ]


async def test_nothing_is_logged_where_nothing_happened(
    engine: AsyncEngine, secret_process: ProcessMetadata, records: list[logging.LogRecord]
) -> None:
    repository = Repository(engine)
    await repository.update(secret_process)
    await run_in_transaction(engine, lambda conn: repository.update(secret_process, conn))
    assert records == []
