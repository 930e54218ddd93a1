"""`claim(by="version")`: candidates are read without a lock, and taken if nobody has changed them since."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessMetadata,
    ProcessStatus,
    StoredStateError,
    TransactionConflictError,
)
from tests.support.databases import execute
from tests.support.items import DOMAIN, new_process
from tests.support.retrying import assert_can_be_run_again

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAITING = [ProcessStatus.WAITING_FOR_REPLY]
Repository = PostgresProcessRepository[JsonObject]


async def backlog(repository: Repository, size: int, **changes: object) -> list[UUID]:
    """Save waiting processes, the oldest first, and return their ids."""
    saved: list[UUID] = []
    for number in range(size):
        time = NOON + timedelta(seconds=number)
        given = {"status": ProcessStatus.WAITING_FOR_REPLY, "created_at": time, "updated_at": time, **changes}
        process = new_process().model_copy(update=given)
        await repository.save(process)
        saved.append(process.process_id)
    return saved


def ids(processes: list[ProcessMetadata[JsonObject]]) -> list[UUID]:
    return [process.process_id for process in processes]


async def test_the_oldest_are_returned_as_they_are_now_in_their_rows(
    repository: Repository, engine: AsyncEngine
) -> None:
    saved = await backlog(repository, 3)
    async with engine.begin() as conn:
        claimed = await repository.claim(DOMAIN, WAITING, conn, limit=2, by="version")
        assert ids(claimed) == saved[:2]
        assert [process.version for process in claimed] == [2, 2]
        assert claimed[0].updated_at > NOON + timedelta(days=1)
        for process in claimed:
            assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process
    last = await repository.get_by_id(DOMAIN, saved[2])
    assert last is not None
    assert (last.version, last.updated_at) == (1, NOON + timedelta(seconds=2))


async def test_what_was_claimed_can_be_written_at_once_and_later(repository: Repository, engine: AsyncEngine) -> None:
    await backlog(repository, 2)
    async with engine.begin() as conn:
        first, second = await repository.claim(DOMAIN, WAITING, conn, limit=2, by="version")
        first.status = ProcessStatus.COMPLETED
        await repository.update(first, conn)
    second.status = ProcessStatus.FAILED
    await repository.update(second)
    assert (first.version, second.version) == (3, 3)
    assert await repository.get_by_id(DOMAIN, first.process_id) == first
    assert await repository.get_by_id(DOMAIN, second.process_id) == second


async def test_after_a_rollback_the_object_matches_its_row_again(repository: Repository, engine: AsyncEngine) -> None:
    [saved] = await backlog(repository, 1)
    async with engine.connect() as conn:
        [claimed] = await repository.claim(DOMAIN, WAITING, conn, limit=1, by="version")
        await conn.rollback()
    claimed.current_step = "again"
    await repository.update(claimed)
    assert claimed.version == 2
    assert await repository.get_by_id(DOMAIN, saved) == claimed


async def test_the_processes_are_locked_until_the_transaction_ends(repository: Repository, engine: AsyncEngine) -> None:
    await backlog(repository, 1)
    async with engine.begin() as conn, engine.begin() as other:
        [claimed] = await repository.claim(DOMAIN, WAITING, conn, limit=1, by="version")
        assert await repository.get_by_id(DOMAIN, claimed.process_id, other, for_update="skip_locked") is None


async def test_what_others_hold_is_left_out_and_not_waited_for(repository: Repository, engine: AsyncEngine) -> None:
    saved = await backlog(repository, 4)
    async with engine.connect() as conn, engine.connect() as other, asyncio.timeout(20):
        await repository.claim(DOMAIN, WAITING, conn, limit=1, by="version")
        assert ids(await repository.claim(DOMAIN, WAITING, other, limit=3, by="version")) == saved[1:3]
        assert ids(await repository.claim(DOMAIN, WAITING, conn, limit=9, by="version")) == [saved[0], saved[3]]
        assert await repository.claim(DOMAIN, [ProcessStatus.FAILED], conn, limit=9, by="version") == []


async def test_who_can_have_none_gets_none(repository: Repository, engine: AsyncEngine) -> None:
    await backlog(repository, 3)
    async with engine.connect() as conn, engine.connect() as other, asyncio.timeout(20):
        assert len(await repository.claim(DOMAIN, WAITING, conn, limit=3, by="version")) == 3
        for limit in (1, 3, 9):
            assert await repository.claim(DOMAIN, WAITING, other, limit=limit, by="version") == []


async def test_what_is_free_behind_what_others_hold_is_found(repository: Repository, engine: AsyncEngine) -> None:
    saved = await backlog(repository, 34)
    async with engine.connect() as conn, engine.connect() as other, asyncio.timeout(20):
        await repository.claim(DOMAIN, WAITING, conn, limit=30, by="version")
        got: list[UUID] = []
        while found := await repository.claim(DOMAIN, [ProcessStatus.WAITING_FOR_REPLY], other, limit=2, by="version"):
            for process in found:
                process.status = ProcessStatus.COMPLETED
                await repository.update(process, other)
            got += ids(found)
        assert sorted(got) == sorted(saved[30:])


async def test_a_snapshot_that_is_older_than_a_claim(
    repository: Repository, engine: AsyncEngine, isolation_level: str
) -> None:
    [saved] = await backlog(repository, 1)
    async with engine.connect() as conn, engine.connect() as other:
        await repository.find_by_status(DOMAIN, WAITING, other)  # the snapshot of the higher levels is taken here
        await repository.claim(DOMAIN, WAITING, conn, limit=1, by="version")
        await conn.commit()
        [result] = await asyncio.gather(
            repository.claim(DOMAIN, WAITING, other, limit=1, by="version"), return_exceptions=True
        )
    if isolation_level == "READ COMMITTED":
        assert isinstance(result, list)
        assert [(process.process_id, process.version) for process in result] == [(saved, 3)]
    else:
        assert isinstance(result, TransactionConflictError)
        assert result.retryable


async def test_a_change_between_the_two_statements_is_noticed_even_if_the_version_is_the_same(
    repository: Repository, engine: AsyncEngine, database_url: str, isolation_level: str
) -> None:
    saved = await backlog(repository, 2)
    changed: list[str] = []

    def change(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "UPDATE commandbus.process SET" in statement and not changed:
            changed.append(statement)
            execute(database_url, f"UPDATE commandbus.process SET updated_at = now() WHERE process_id = '{saved[0]}'")

    event.listen(engine.sync_engine, "before_cursor_execute", change)
    async with engine.connect() as conn:
        [result] = await asyncio.gather(
            repository.claim(DOMAIN, WAITING, conn, limit=2, by="version"), return_exceptions=True
        )
    assert changed
    if isolation_level == "READ COMMITTED":
        assert isinstance(result, list)
        assert ids(result) == saved[1:]
    else:
        assert isinstance(result, TransactionConflictError)


async def test_ten_workers_drain_one_backlog_and_none_gets_what_another_got(
    repository: Repository, engine: AsyncEngine, isolation_level: str
) -> None:
    saved = await backlog(repository, 60)
    handled: list[UUID] = []

    async def work() -> None:
        while True:
            try:
                async with engine.begin() as conn:
                    claimed = await repository.claim(DOMAIN, WAITING, conn, limit=3, by="version")
                    for process in claimed:
                        process.status = ProcessStatus.COMPLETED
                        await repository.update(process, conn)
            except (ConcurrentUpdateError, TransactionConflictError, DBAPIError) as error:
                assert isolation_level != "READ COMMITTED"
                assert_can_be_run_again(error)
                continue
            handled.extend(ids(claimed))
            if not claimed and not await repository.find_by_status(DOMAIN, WAITING):
                return

    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(10)))
    assert sorted(handled) == sorted(saved)
    ended = await repository.find_by_status(DOMAIN, [ProcessStatus.COMPLETED])
    assert {process.version for process in ended} == {3}


FILTERS: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "type": {"process_type": "refund"},
    "step": {"current_step": "charge"},
    "key": {"business_key": "A-1"},
    "updated": {"updated_before": NOON + timedelta(seconds=2)},
    "deadline": {"deadline_before": NOON + timedelta(hours=3)},
    "deadline and type": {"deadline_before": NOON + timedelta(hours=3), "process_type": "order"},
}


@pytest.mark.parametrize("statuses", [WAITING, [*WAITING, ProcessStatus.FAILED], list(ProcessStatus), []], ids=len)
@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
async def test_it_looks_for_what_a_claim_by_lock_looks_for(
    repository: Repository, engine: AsyncEngine, wanted: dict[str, Any], statuses: list[ProcessStatus]
) -> None:
    await backlog(repository, 3)
    await backlog(repository, 2, process_type="refund", current_step="charge")
    await backlog(repository, 2, business_key="A-1", deadline=NOON + timedelta(hours=2))
    await backlog(repository, 2, deadline=NOON + timedelta(hours=1), current_step="charge")
    await backlog(repository, 1, status=ProcessStatus.FAILED, process_type="refund", deadline=NOON)
    await backlog(repository, 1, domain="elsewhere")
    async with engine.connect() as conn:
        for limit in (2, 50):
            expected = ids(await repository.claim(DOMAIN, statuses, conn, limit=limit, **wanted))
            await conn.rollback()
            claimed = await repository.claim(DOMAIN, statuses, conn, limit=limit, by="version", **wanted)
            await conn.rollback()
            assert ids(claimed) == expected
    assert expected or not statuses


async def test_what_cannot_be_read_does_not_hide_what_is_behind_it(
    repository: Repository, engine: AsyncEngine, database_url: str
) -> None:
    saved = await backlog(repository, 2)
    execute(database_url, f"UPDATE commandbus.process SET state = '[]' WHERE process_id = '{saved[0]}'")
    seen: list[UUID] = []
    async with engine.connect() as conn:
        with pytest.raises(StoredStateError):
            await repository.claim(DOMAIN, WAITING, conn, limit=1, by="version")
        await conn.rollback()
        claimed = await repository.claim(
            DOMAIN, WAITING, conn, limit=1, by="version", on_unreadable=lambda error: seen.append(error.process_id)
        )
    assert (ids(claimed), seen) == ([saved[1]], [saved[0]])


@pytest.mark.parametrize(
    ("changes", "field"), [({"by": "luck"}, "by"), ({"conn": None}, "conn"), ({"limit": 0}, "limit")]
)
async def test_what_cannot_be_claimed(
    repository: Repository, engine: AsyncEngine, changes: dict[str, Any], field: str
) -> None:
    async with engine.connect() as conn:
        arguments: dict[str, Any] = {"conn": conn, "limit": 1, "by": "version", **changes}
        with pytest.raises(InvalidInputError) as caught:
            await repository.claim(DOMAIN, WAITING, **arguments)
    assert caught.value.field == field


async def test_a_connection_in_autocommit_is_refused_and_nothing_is_written(
    repository: Repository, engine: AsyncEngine
) -> None:
    [saved] = await backlog(repository, 1)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidInputError, match="autocommit"):
            await repository.claim(DOMAIN, WAITING, conn, limit=1, by="version")
    found = await repository.get_by_id(DOMAIN, saved)
    assert found is not None
    assert found.version == 1
