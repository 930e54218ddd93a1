"""Many at once: no update is lost, and what is delivered several times is there once."""

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessRepositoryError,
    ReplyConflictError,
    ReplyOutcome,
)
from tests.support.items import DOMAIN, new_process
from tests.support.retrying import assert_can_be_run_again

WORKERS = 16
PROCESSES = 4
INCREMENTS = 5  # by each worker, on each process
Repository = PostgresProcessRepository


async def increment(repository: Repository, process: ProcessMetadata, engine: AsyncEngine, how: str) -> None:
    """Read, modify and write a counter in the state, once."""
    if how == "without a connection":
        found = await repository.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        count_up(found)
        await repository.update(found)
        return
    async with engine.begin() as conn:
        for_update = how == "with for_update"
        found = await repository.get_by_id(DOMAIN, process.process_id, conn, for_update=for_update)
        assert found is not None
        count_up(found)
        await repository.update(found, conn)


def count_up(process: ProcessMetadata) -> None:
    count = process.state["count"]
    assert isinstance(count, int)
    process.state["count"] = count + 1


@pytest.mark.parametrize("how", ["without a connection", "with a connection", "with for_update"])
async def test_no_update_is_lost(repository: Repository, engine: AsyncEngine, isolation_level: str, how: str) -> None:
    processes = [new_process() for _ in range(PROCESSES)]
    for process in processes:
        process.state = {"count": 0}
        await repository.save(process)
    acknowledged = dict.fromkeys((process.process_id for process in processes), 0)
    conflicts = 0

    async def work() -> None:
        nonlocal conflicts
        for process in processes * INCREMENTS:
            while True:
                try:
                    await increment(repository, process, engine, how)
                except (ProcessRepositoryError, DBAPIError) as error:
                    assert_can_be_run_again(error)
                    conflicts += 1
                else:
                    acknowledged[process.process_id] += 1
                    break

    async with asyncio.timeout(120):
        await asyncio.gather(*(work() for _ in range(WORKERS)))
    for process in processes:
        found = await repository.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        assert found.state["count"] == acknowledged[process.process_id] == WORKERS * INCREMENTS
        assert found.version == 1 + WORKERS * INCREMENTS
    if how == "with for_update" and isolation_level == "READ COMMITTED":
        assert conflicts == 0  # who waits does not lose
    if how != "with for_update":
        assert conflicts > 0  # else nothing was proved


async def test_a_step_and_a_reply_delivered_by_eight_tasks_at_once(
    repository: Repository, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve", command_data={"n": 1e-7})
    await asyncio.gather(*(repository.log_step(DOMAIN, process.process_id, entry) for _ in range(8)))
    assert await repository.get_audit_trail(DOMAIN, process.process_id) != []
    answer = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "reply_data": {"n": 1e-7}})
    key = DOMAIN, process.process_id, entry.command_id
    await asyncio.gather(*(repository.update_step_reply(*key, answer) for _ in range(8)))
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id)
    assert found.reply_outcome == ReplyOutcome.SUCCESS


async def test_the_same_delivered_on_callers_connections_is_there_once(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    answer = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "received_at": entry.sent_at})

    async def deliver() -> None:
        while True:
            try:
                async with engine.begin() as conn:
                    await repository.log_step(DOMAIN, process.process_id, entry, conn)
                    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, answer, conn)
            except (ProcessRepositoryError, DBAPIError) as error:
                assert_can_be_run_again(error)
            else:
                return

    async with asyncio.timeout(60):
        await asyncio.gather(*(deliver() for _ in range(8)))
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [answer]


async def test_of_conflicting_replies_at_once_exactly_one_is_recorded(
    repository: Repository, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    await repository.log_step(DOMAIN, process.process_id, entry)
    replies = [
        entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "reply_data": {"n": n}}) for n in range(8)
    ]
    key = DOMAIN, process.process_id, entry.command_id
    results = await asyncio.gather(
        *(repository.update_step_reply(*key, each) for each in replies), return_exceptions=True
    )
    [winner] = [number for number, result in enumerate(results) if result is True]
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id)
    assert found.reply_data == {"n": winner}
    for result in results:
        if result is not True:
            assert isinstance(result, ReplyConflictError)
            assert result.recorded.reply_data == {"n": winner}


async def test_of_updates_of_one_version_at_once_exactly_one_is_written(
    repository: Repository, process: ProcessMetadata
) -> None:
    await repository.save(process)
    copies = [process.model_copy(deep=True, update={"current_step": f"step {number}"}) for number in range(8)]
    results = await asyncio.gather(*(repository.update(copy) for copy in copies), return_exceptions=True)
    [winner] = [number for number, result in enumerate(results) if result is None]
    assert await repository.get_by_id(DOMAIN, process.process_id) == copies[winner]
    for result in results:
        if result is not None:
            assert isinstance(result, ConcurrentUpdateError)
            assert (result.expected_version, result.actual_version) == (1, 2)


async def test_blind_updates_at_once_all_succeed(repository: Repository, process: ProcessMetadata) -> None:
    await repository.save(process)
    copies = [process.model_copy(deep=True, update={"version": None}) for _ in range(16)]
    await asyncio.gather(*(repository.update(copy) for copy in copies))
    assert sorted(copy.version or 0 for copy in copies) == list(range(2, 18))
