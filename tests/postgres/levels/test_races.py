"""Two at once: each race is set up so that both sides have begun before either is done."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
from sqlalchemy import delete, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    DeadlockError,
    InvalidInputError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessLockedError,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    tables,
)
from tests.support.databases import execute
from tests.support.items import DOMAIN, new_process
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository
Call = Callable[[AsyncConnection], Awaitable[object]]
Race = Callable[[Call, Awaitable[object]], Awaitable[object]]


@pytest.fixture
def race(engine: AsyncEngine, administrator: AsyncEngine) -> Race:
    """Lets the second run into what the first has not committed yet, commits, and gives what became of the second."""

    async def run(first: Call, second: Awaitable[object]) -> object:
        async with engine.begin() as connection:
            await first(connection)
            task = asyncio.ensure_future(second)
            await is_waiting_for_a_lock(administrator)
        [result] = await asyncio.gather(task, return_exceptions=True)
        return result

    return run


async def test_two_saves_of_one_id(repository: Repository, race: Race, process: ProcessMetadata) -> None:
    other = new_process(process.process_id)
    result = await race(lambda conn: repository.save(process, conn), repository.save(other))
    assert isinstance(result, ProcessAlreadyExistsError)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process


async def test_two_updates_of_one_version(repository: Repository, race: Race, process: ProcessMetadata) -> None:
    await repository.save(process)
    other = process.model_copy(deep=True, update={"current_step": "loser"})
    result = await race(lambda conn: repository.update(process, conn), repository.update(other))
    assert isinstance(result, ConcurrentUpdateError)
    assert (result.expected_version, result.actual_version) == (1, 2)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process


@pytest.mark.parametrize("same", [True, False])
async def test_two_logs_of_one_command(
    repository: Repository, race: Race, process: ProcessMetadata, *, same: bool
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    other = entry.model_copy() if same else entry.model_copy(update={"step_name": "other"})
    result = await race(
        lambda conn: repository.log_step(DOMAIN, process.process_id, entry, conn),
        repository.log_step(DOMAIN, process.process_id, other),
    )
    assert result is False if same else isinstance(result, StepAlreadyLoggedError)
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [entry]


@pytest.mark.parametrize("same", [True, False])
async def test_two_replies_to_one_command(
    repository: Repository, race: Race, process: ProcessMetadata, *, same: bool
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    await repository.log_step(DOMAIN, process.process_id, entry)
    first = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "received_at": entry.sent_at})
    other = first.model_copy() if same else first.model_copy(update={"reply_outcome": ReplyOutcome.FAILED})
    key = DOMAIN, process.process_id, entry.command_id
    result = await race(
        lambda conn: repository.update_step_reply(*key, first, conn),
        repository.update_step_reply(*key, other),
    )
    assert result is False if same else isinstance(result, ReplyConflictError)
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
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    other = entry.model_copy(update={"step_name": "rolled back"})
    async with engine.connect() as connection:
        await repository.log_step(DOMAIN, process.process_id, other, connection)
        task = asyncio.ensure_future(repository.log_step(DOMAIN, process.process_id, entry))
        await is_waiting_for_a_lock(administrator)
        await connection.rollback()
    await task
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [entry]


async def test_a_process_that_is_being_deleted_is_not_found_and_the_transaction_goes_on(
    repository: Repository,
    engine: AsyncEngine,
    administrator: AsyncEngine,
    process: ProcessMetadata,
    isolation_level: str,
) -> None:
    await repository.save(process)
    kept = new_process()
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    async with administrator.connect() as deleting, engine.connect() as conn:
        await deleting.execute(delete(tables.process))
        await repository.save(kept, conn)
        task = asyncio.ensure_future(repository.log_step(DOMAIN, process.process_id, entry, conn))
        await is_waiting_for_a_lock(administrator)
        await deleting.commit()
        [result] = await asyncio.gather(task, return_exceptions=True)
        if isolation_level == "READ COMMITTED":
            assert isinstance(result, ProcessNotFoundError)
            await conn.commit()
            assert await repository.get_by_id(DOMAIN, kept.process_id) == kept
        else:
            assert isinstance(result, ConcurrentUpdateError)
            assert result.actual_version is None


@pytest.mark.parametrize("write", ["update", "save", "log_step", "update_step_reply"])
async def test_the_loser_on_a_callers_connection_gets_a_typed_error_on_every_level(
    repository: Repository,
    engine: AsyncEngine,
    race: Race,
    process: ProcessMetadata,
    isolation_level: str,
    write: str,
) -> None:
    """The error of READ COMMITTED if the level lets the loser see why. Otherwise an error that you can retry."""
    unsaved = new_process()
    await repository.save(process)
    logged = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    await repository.log_step(DOMAIN, process.process_id, logged)
    sent = ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge")
    other = sent.model_copy(update={"step_name": "other"})
    won = logged.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS})
    lost = logged.model_copy(update={"reply_outcome": ReplyOutcome.FAILED})
    stale = process.model_copy(deep=True)
    process_id, command_id = process.process_id, logged.command_id
    calls: dict[str, tuple[Call, Call, type[ProcessRepositoryError]]] = {
        "update": (
            lambda conn: repository.update(process, conn),
            lambda conn: repository.update(stale, conn),
            ConcurrentUpdateError,
        ),
        "save": (
            lambda conn: repository.save(unsaved, conn),
            lambda conn: repository.save(new_process(unsaved.process_id), conn),
            ProcessAlreadyExistsError,
        ),
        "log_step": (
            lambda conn: repository.log_step(DOMAIN, process_id, sent, conn),
            lambda conn: repository.log_step(DOMAIN, process_id, other, conn),
            StepAlreadyLoggedError,
        ),
        "update_step_reply": (
            lambda conn: repository.update_step_reply(DOMAIN, process_id, command_id, won, conn),
            lambda conn: repository.update_step_reply(DOMAIN, process_id, command_id, lost, conn),
            ReplyConflictError,
        ),
    }
    first, second, expected = calls[write]
    async with engine.connect() as conn:
        await repository.get_by_id(DOMAIN, process_id, conn)  # the snapshot of the higher levels is taken here
        result = await race(first, second(conn))
        if isolation_level == "READ COMMITTED":
            assert isinstance(result, expected)
            assert await repository.get_by_id(DOMAIN, process_id, conn) is not None  # the transaction is alive
        else:
            assert isinstance(result, ConcurrentUpdateError)
            assert (result.domain, result.actual_version) == (DOMAIN, None)
            assert isinstance(result.__cause__, DBAPIError)
            with pytest.raises(InvalidInputError, match="aborted"):
                await repository.get_by_id(DOMAIN, process_id, conn)
        await conn.rollback()


async def test_a_deadlock_is_a_retryable_error(repository: Repository, engine: AsyncEngine) -> None:
    one, two = new_process(), new_process()
    for process in (one, two):
        await repository.save(process)

    async def lock_both(first: ProcessMetadata, second: ProcessMetadata, ready: asyncio.Barrier) -> None:
        async with engine.begin() as conn:
            await repository.get_by_id(DOMAIN, first.process_id, conn, for_update=True)
            await ready.wait()
            await repository.get_by_id(DOMAIN, second.process_id, conn, for_update=True)

    ready = asyncio.Barrier(2)
    async with asyncio.timeout(30):
        results = await asyncio.gather(lock_both(one, two, ready), lock_both(two, one, ready), return_exceptions=True)
    [error] = [result for result in results if result is not None]
    assert isinstance(error, DeadlockError)
    assert error.retryable
    assert error.sqlstate == "40P01"
    assert isinstance(error.__cause__, DBAPIError)


async def test_the_callers_lock_timeout_is_an_error_about_a_lock(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    async with engine.begin() as holder, engine.connect() as conn:
        await repository.get_by_id(DOMAIN, process.process_id, holder, for_update=True)
        await conn.execute(text("SET LOCAL lock_timeout = '10ms'"))
        with pytest.raises(ProcessLockedError) as caught:
            await repository.update(process.model_copy(), conn)
        assert caught.value.process_id == process.process_id


@pytest.mark.parametrize("write", ["log_step", "update_step_reply"])
async def test_an_obstacle_that_goes_away_between_two_statements(
    repository: Repository, engine: AsyncEngine, database_url: str, process: ProcessMetadata, write: str
) -> None:
    """What was in the way of the first statement is gone when the second looks for it: the write is done after all."""
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    other = entry.model_copy(update={"step_name": "in the way", "reply_outcome": ReplyOutcome.FAILED})
    await repository.log_step(DOMAIN, process.process_id, other)
    remedy = {
        "log_step": "DELETE FROM commandbus.process_audit",
        "update_step_reply": "UPDATE commandbus.process_audit SET reply_outcome = NULL, received_at = NULL",
    }[write]
    seen: list[str] = []

    def clear_the_way(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)
        if len(seen) == 2:  # before the statement that looks for what is in the way
            execute(database_url, remedy)

    event.listen(engine.sync_engine, "before_cursor_execute", clear_the_way)
    # A transaction that has its snapshot already would still see the obstacle.
    own = PostgresProcessRepository(engine.execution_options(isolation_level="READ COMMITTED"))
    given = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "received_at": entry.sent_at})
    if write == "log_step":
        await own.log_step(DOMAIN, process.process_id, given)
    else:
        await own.update_step_reply(DOMAIN, process.process_id, entry.command_id, given)
    event.remove(engine.sync_engine, "before_cursor_execute", clear_the_way)
    assert len(seen) == 3
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id)
    assert found.reply_outcome == ReplyOutcome.SUCCESS
