"""Waiting instead of racing: `for_update`, and `claim` for workers that share a backlog."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessLockedError,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    TransactionConflictError,
)
from tests.support.items import DOMAIN, new_process
from tests.support.retrying import assert_can_be_run_again
from tests.support.waiting import is_waiting_for_a_lock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAITING = [ProcessStatus.WAITING_FOR_REPLY]
Repository = PostgresProcessRepository
LOCKS: list[Literal[True, "nowait", "skip_locked"]] = [True, "nowait", "skip_locked"]


@pytest.mark.parametrize("lock", LOCKS)
async def test_a_free_process_is_read_and_locked(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata, lock: Literal[True, "nowait", "skip_locked"]
) -> None:
    await repository.save(process)
    async with engine.begin() as conn, engine.begin() as other:
        assert await repository.get_by_id(DOMAIN, process.process_id, conn, for_update=lock) == process
        assert await repository.get_by_id(DOMAIN, process.process_id, other) == process
        assert await repository.get_by_id(DOMAIN, process.process_id, other, for_update="skip_locked") is None
        with pytest.raises(ProcessLockedError) as caught:
            await repository.get_by_id(DOMAIN, process.process_id, other, for_update="nowait")
        assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)
        assert caught.value.retryable
        assert await repository.get_by_id(DOMAIN, process.process_id, other) == process


@pytest.mark.parametrize("lock", LOCKS)
async def test_an_unknown_process_is_none_locked_or_not(
    repository: Repository, engine: AsyncEngine, lock: Literal[True, "nowait", "skip_locked"]
) -> None:
    async with engine.begin() as conn:
        assert await repository.get_by_id(DOMAIN, uuid4(), conn, for_update=lock) is None


async def test_steps_are_logged_and_replied_to_while_the_process_is_locked(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    answer = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS})
    async with engine.begin() as conn:
        await repository.get_by_id(DOMAIN, process.process_id, conn, for_update=True)
        async with asyncio.timeout(30):
            await repository.log_step(DOMAIN, process.process_id, entry)
            await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, answer)
    assert await repository.get_completed_steps(DOMAIN, process.process_id) == ["reserve"]


async def test_other_writers_wait_for_the_lock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    blind = process.model_copy(deep=True, update={"version": None, "current_step": "blind"})
    async with engine.begin() as conn:
        locked = await repository.get_by_id(DOMAIN, process.process_id, conn, for_update=True)
        assert locked is not None
        task = asyncio.ensure_future(repository.update(blind))
        await is_waiting_for_a_lock(administrator)
        await repository.update(locked, conn)
    await task
    assert blind.version == 3


async def test_who_waited_for_the_lock_reads_what_the_other_wrote_or_runs_again(
    repository: Repository,
    engine: AsyncEngine,
    administrator: AsyncEngine,
    process: ProcessMetadata,
    isolation_level: str,
) -> None:
    await repository.save(process)
    async with engine.connect() as conn, engine.connect() as other:
        await repository.get_by_id(DOMAIN, uuid4(), other)  # the snapshot of the higher levels is taken here
        locked = await repository.get_by_id(DOMAIN, process.process_id, conn, for_update=True)
        assert locked is not None
        task = asyncio.ensure_future(repository.get_by_id(DOMAIN, process.process_id, other, for_update=True))
        await is_waiting_for_a_lock(administrator)
        locked.current_step = "first"
        await repository.update(locked, conn)
        await conn.commit()
        [found] = await asyncio.gather(task, return_exceptions=True)
        if isolation_level == "READ COMMITTED":
            assert found == locked
        else:
            assert isinstance(found, ConcurrentUpdateError)
            assert found.retryable
        await other.rollback()
        assert await repository.get_by_id(DOMAIN, process.process_id, other, for_update=True) == locked


async def test_a_lock_needs_a_connection(repository: Repository) -> None:
    wrong: Any = "yes"
    with pytest.raises(ValueError, match="for_update: needs conn"):
        await repository.get_by_id(DOMAIN, uuid4(), for_update=True)
    with pytest.raises(ValueError, match="for_update: must be"):
        await repository.get_by_id(DOMAIN, uuid4(), for_update=wrong)


async def backlog(repository: Repository, size: int, **changes: object) -> list[ProcessMetadata]:
    """Save waiting processes, the oldest first."""
    saved: list[ProcessMetadata] = []
    for number in range(size):
        created = {"created_at": NOON + timedelta(seconds=number), "updated_at": NOON + timedelta(seconds=number)}
        process = new_process().model_copy(update={"status": ProcessStatus.WAITING_FOR_REPLY, **created, **changes})
        await repository.save(process)
        saved.append(process)
    return saved


async def test_claims_are_the_oldest_and_are_locked(repository: Repository, engine: AsyncEngine) -> None:
    processes = await backlog(repository, 5)
    async with engine.connect() as conn, engine.connect() as other:
        assert await repository.claim(DOMAIN, WAITING, conn, limit=2) == processes[:2]
        assert await repository.claim(DOMAIN, WAITING, other, limit=2) == processes[2:4]
        assert await repository.claim(DOMAIN, WAITING, conn, limit=10) == [*processes[:2], processes[4]]
        assert await repository.claim(DOMAIN, WAITING, other, limit=10) == processes[2:4]
        await conn.rollback()
        await other.rollback()
        assert await repository.claim(DOMAIN, WAITING, other, limit=10) == processes


async def test_what_a_claim_looks_for(repository: Repository, engine: AsyncEngine) -> None:
    processes = await backlog(repository, 3)
    [refund] = await backlog(repository, 1, process_type="refund")
    [ended] = await backlog(repository, 1, status=ProcessStatus.FAILED)
    await backlog(repository, 1, domain="elsewhere")
    async with engine.connect() as conn:

        async def ids(statuses: list[ProcessStatus] = WAITING, **options: Any) -> set[UUID]:
            found = await repository.claim(DOMAIN, statuses, conn, limit=10, **options)
            return {each.process_id for each in found}

        every = {each.process_id for each in (*processes, refund)}
        assert await ids() == every
        assert await ids([]) == set()
        assert await ids(process_type="refund") == {refund.process_id}
        assert await ids([*WAITING, ProcessStatus.FAILED]) == {*every, ended.process_id}
        stuck = {processes[0].process_id, refund.process_id}
        assert await ids(updated_before=NOON + timedelta(seconds=1)) == stuck
        assert await ids(updated_before=NOON + timedelta(seconds=1), process_type="order") == {processes[0].process_id}


async def test_steps_can_be_logged_while_a_process_is_claimed(repository: Repository, engine: AsyncEngine) -> None:
    [process] = await backlog(repository, 1)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    async with engine.begin() as conn:
        assert await repository.claim(DOMAIN, WAITING, conn, limit=1) == [process]
        async with asyncio.timeout(30):
            await repository.log_step(DOMAIN, process.process_id, entry)


async def test_ten_workers_drain_one_backlog_and_none_gets_what_another_got(
    repository: Repository, engine: AsyncEngine
) -> None:
    processes = await backlog(repository, 60)
    handled: list[UUID] = []

    async def work() -> None:
        while True:
            try:
                async with engine.begin() as conn:
                    claimed = await repository.claim(DOMAIN, WAITING, conn, limit=3)
                    for process in claimed:
                        process.status = ProcessStatus.COMPLETED
                        await repository.update(process, conn)
            except (ConcurrentUpdateError, TransactionConflictError, DBAPIError) as error:
                assert_can_be_run_again(error)  # on the higher levels, when two collide
                continue
            handled.extend(process.process_id for process in claimed)
            if not claimed and not await repository.find_by_status(DOMAIN, WAITING):
                return

    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(10)))
    assert sorted(handled) == sorted(process.process_id for process in processes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 2**31}, "limit"),
        ({"process_type": ""}, "process_type"),
        ({"updated_before": datetime(2026, 3, 1)}, "updated_before"),  # noqa: DTZ001 - what is refused
        ({"domain": ""}, "domain"),
        ({"statuses": "WAITING"}, "statuses"),
        ({"conn": None}, "conn"),
    ],
    ids=str,
)
async def test_what_cannot_be_claimed(
    repository: PostgresProcessRepository[JsonObject], engine: AsyncEngine, changes: dict[str, Any], field: str
) -> None:
    async with engine.connect() as conn:
        arguments: dict[str, Any] = {"domain": DOMAIN, "statuses": WAITING, "conn": conn, "limit": 1, **changes}
        with pytest.raises(InvalidInputError) as caught:
            await repository.claim(**arguments)
    assert caught.value.field == field
