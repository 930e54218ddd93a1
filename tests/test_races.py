"""Two at once: each race is set up so that both sides have begun before either is done."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessMetadata,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
)
from tests.conftest import DOMAIN, new_process

Repository = PostgresProcessRepository


async def is_waiting_for_a_lock(engine: AsyncEngine) -> None:
    """Return once a session of this database waits for another's lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(30), engine.connect() as connection:
        while (await connection.execute(waiting)).scalar_one() == 0:
            await connection.rollback()  # within a transaction, the view stays the same


async def race(
    engine: AsyncEngine, first: Callable[[AsyncConnection], Awaitable[None]], second: Awaitable[None]
) -> BaseException | None:
    """Let `second` run into what `first` has not committed yet, commit, and return what became of `second`."""
    async with engine.begin() as connection:
        await first(connection)
        task = asyncio.ensure_future(second)
        await is_waiting_for_a_lock(engine)
    [result] = await asyncio.gather(task, return_exceptions=True)
    return result


async def test_two_saves_of_one_id(repository: Repository, engine: AsyncEngine, process: ProcessMetadata) -> None:
    other = new_process(process.process_id)
    result = await race(engine, lambda conn: repository.save(process, conn), repository.save(other))
    assert isinstance(result, ProcessAlreadyExistsError)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process


async def test_two_updates_of_one_version(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    other = process.model_copy(deep=True, update={"current_step": "loser"})
    result = await race(engine, lambda conn: repository.update(process, conn), repository.update(other))
    assert isinstance(result, ConcurrentUpdateError)
    assert (result.expected_version, result.actual_version) == (1, 2)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process


@pytest.mark.parametrize("same", [True, False])
async def test_two_logs_of_one_command(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata, *, same: bool
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    other = entry.model_copy() if same else entry.model_copy(update={"step_name": "other"})
    result = await race(
        engine,
        lambda conn: repository.log_step(DOMAIN, process.process_id, entry, conn),
        repository.log_step(DOMAIN, process.process_id, other),
    )
    assert result is None if same else isinstance(result, StepAlreadyLoggedError)
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [entry]


@pytest.mark.parametrize("same", [True, False])
async def test_two_replies_to_one_command(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata, *, same: bool
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    await repository.log_step(DOMAIN, process.process_id, entry)
    first = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "received_at": entry.sent_at})
    other = first.model_copy() if same else first.model_copy(update={"reply_outcome": ReplyOutcome.FAILED})
    key = DOMAIN, process.process_id, entry.command_id
    result = await race(
        engine,
        lambda conn: repository.update_step_reply(*key, first, conn),
        repository.update_step_reply(*key, other),
    )
    assert result is None if same else isinstance(result, ReplyConflictError)
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [first]


async def test_steps_can_be_logged_while_the_process_is_being_updated(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    async with engine.begin() as connection:
        await repository.update(process, connection)
        async with asyncio.timeout(30):
            await repository.log_step(DOMAIN, process.process_id, entry)
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [entry]


async def test_what_was_in_the_way_and_is_rolled_back_makes_room(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    other = entry.model_copy(update={"step_name": "rolled back"})
    async with engine.connect() as connection:
        await repository.log_step(DOMAIN, process.process_id, other, connection)
        task = asyncio.ensure_future(repository.log_step(DOMAIN, process.process_id, entry))
        await is_waiting_for_a_lock(engine)
        await connection.rollback()
    await task
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [entry]
