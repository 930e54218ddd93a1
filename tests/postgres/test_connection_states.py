"""A connection that cannot be used is an error that says why, quotes no state, and leaves the connection as it was."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InvalidRequestError, PendingRollbackError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.asyncio.exc import AsyncContextNotStarted

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)
from tests.support.items import DOMAIN, new_process

Repository = PostgresProcessRepository[JsonObject]

MARK = "no error may quote this"

Call = Callable[[Repository, ProcessMetadata, AsyncConnection], Awaitable[object]]


def command() -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge", command_data={"mark": MARK})


def reply() -> ProcessAuditEntry:
    return command().model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "reply_data": {"mark": MARK}})


REPLY = reply()
CALLS: dict[str, Call] = {
    "save": lambda repository, process, conn: repository.save(
        new_process().model_copy(update={"state": process.state}), conn
    ),
    "update": lambda repository, process, conn: repository.update(process, conn),
    "get_by_id": lambda repository, process, conn: repository.get_by_id(DOMAIN, process.process_id, conn),
    "find_by_status": lambda repository, _, conn: repository.find_by_status(DOMAIN, list(ProcessStatus), conn),
    "claim": lambda repository, _, conn: repository.claim(DOMAIN, list(ProcessStatus), conn, limit=1),
    "claim by version": lambda repository, _, conn: repository.claim(
        DOMAIN, list(ProcessStatus), conn, limit=1, by="version"
    ),
    "log_step": lambda repository, process, conn: repository.log_step(DOMAIN, process.process_id, command(), conn),
    "update_step_reply": lambda repository, process, conn: repository.update_step_reply(
        DOMAIN, process.process_id, REPLY.command_id, REPLY, conn
    ),
    "advance": lambda repository, process, conn: repository.advance(process, conn, sent=[command(), command()]),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Call:
    return CALLS[request.param]


@pytest.fixture
async def marked(repository: Repository, process: ProcessMetadata) -> ProcessMetadata:
    process.state = {"mark": MARK}
    await repository.save(process)
    return process


async def fail(conn: AsyncConnection) -> None:
    with pytest.raises(DBAPIError):
        await conn.execute(text("SELECT 1 / 0"))


async def test_a_transaction_that_was_aborted(
    repository: Repository, engine: AsyncEngine, marked: ProcessMetadata, call: Call
) -> None:
    """SQLAlchemy's error for that would quote the statement's parameters."""
    async with engine.connect() as conn:
        savepoint = await conn.begin_nested()
        await fail(conn)
        with pytest.raises(
            InvalidInputError, match="conn: is in a transaction that an earlier error aborted"
        ) as caught:
            await call(repository, marked, conn)
        assert MARK not in repr(caught.value)
        assert caught.value.__context__ is None
        await savepoint.rollback()
        assert await repository.get_by_id(DOMAIN, marked.process_id, conn) == marked
        await fail(conn)
        await conn.rollback()
        assert await repository.get_by_id(DOMAIN, marked.process_id, conn) == marked


async def test_a_connection_that_was_lost(
    repository: Repository, engine: AsyncEngine, marked: ProcessMetadata, call: Call
) -> None:
    async with engine.connect() as conn:
        await conn.begin()
        await conn.invalidate()
        with pytest.raises(PendingRollbackError) as caught:
            await call(repository, marked, conn)
        assert MARK not in str(caught.value)
        await conn.rollback()
        assert await repository.get_by_id(DOMAIN, marked.process_id, conn) == marked


async def test_a_connection_that_is_closed_or_was_never_opened(
    repository: Repository, engine: AsyncEngine, marked: ProcessMetadata, call: Call
) -> None:
    with pytest.raises(AsyncContextNotStarted) as not_started:
        await call(repository, marked, engine.connect())
    async with engine.connect() as conn:
        pass
    with pytest.raises(InvalidRequestError) as closed:
        await call(repository, marked, conn)
    async with engine.connect() as conn:
        await conn.run_sync(lambda connection: connection.close())
        with pytest.raises(ResourceClosedError) as closed_below:
            await call(repository, marked, conn)
    for caught in (not_started, closed, closed_below):
        assert MARK not in str(caught.value)


@pytest.mark.parametrize("name", ["save", "update", "get_by_id", "find_by_status", "log_step", "advance"])
async def test_a_connection_in_autocommit_stays_in_it(
    repository: Repository, engine: AsyncEngine, marked: ProcessMetadata, name: str
) -> None:
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        await CALLS[name](repository, marked, conn)
        raw = await conn.get_raw_connection()
        driver: Any = raw.driver_connection
        assert driver.autocommit is True
        await conn.rollback()
    found = await repository.find_by_status(DOMAIN, list(ProcessStatus))
    assert marked in found
