"""What a purge deletes, what it leaves, and what happens before it deletes."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessMetadata,
    ProcessRetention,
    ProcessStatus,
    ProcessWithTrail,
    PurgeProgress,
    StoredDataError,
)
from tests.support.databases import Server, as_role, async_url, execute, write_unchecked
from tests.support.ended import END, days, ended, last, left, retain, steps_by_process, store
from tests.support.items import DOMAIN

OF_EACH_STATUS = [(status, ended(status=status, completed_at=END - days(60))) for status in ProcessStatus]


async def test_it_deletes_what_has_ended_before_and_nothing_else(
    retention: ProcessRetention, administrator: AsyncEngine
) -> None:
    old, other_type = ended(), ended(process_type="refund")
    stay = [
        ended(created=900, ended=-1),  # created long ago, and ended just now
        ended(created=90, ended=0),  # at the time itself
        ended(domain="other"),
    ]
    await store(administrator, [old, other_type, *stay], 3)
    assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(2, 6, None)
    assert await left(administrator) == {each.process_id for each in stay}
    assert await steps_by_process(administrator) == {each.process_id: 3 for each in stay}


async def test_it_never_deletes_what_is_not_terminal(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    """Though all of them have a time of completion, which a process that was taken up again may have."""
    await store(administrator, [process for _, process in OF_EACH_STATUS])
    await last(retention.purge(DOMAIN, ended_before=END))
    assert await left(administrator) == {
        process.process_id for status, process in OF_EACH_STATUS if not status.is_terminal
    }


async def test_only_some_statuses_and_one_type(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    failed, refund = ended(status=ProcessStatus.FAILED), ended(status=ProcessStatus.FAILED, process_type="refund")
    completed = ended(process_type="refund")
    await store(administrator, [failed, refund, completed])
    purge = retention.purge(DOMAIN, ended_before=END, statuses=[ProcessStatus.FAILED], process_type="refund")
    assert await last(purge) == PurgeProgress(1, 2, None)
    assert await left(administrator) == {failed.process_id, completed.process_id}


async def test_without_a_time_of_completion_the_last_update_counts(
    retention: ProcessRetention, administrator: AsyncEngine
) -> None:
    old, new = ended(ended=None, updated_at=END - days(1)), ended(ended=None, updated_at=END)
    await store(administrator, [old, new])
    assert (await last(retention.purge(DOMAIN, ended_before=END))).processes == 1
    assert await left(administrator) == {new.process_id}


async def test_a_status_of_newer_software_stays(
    retention: ProcessRetention, administrator: AsyncEngine, database_url: str
) -> None:
    await store(administrator, [ended()])
    write_unchecked(database_url, "UPDATE commandbus.process SET status = 'PAUSED'")
    assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(0, 0, None)


async def test_a_processs_many_steps_go_with_it(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    await store(administrator, [ended(), ended(ended=-1)], 1500)
    assert await last(retention.purge(DOMAIN, ended_before=END, batch_size=1)) == PurgeProgress(1, 1500, None)


async def test_the_batches_go_on_from_where_the_last_one_ended(
    retention: ProcessRetention, administrator: AsyncEngine
) -> None:
    """Also if they were all created at the same time, and some of them stay."""
    processes = [ended(created=90, ended=60 if number % 3 else -1) for number in range(20)]
    await store(administrator, processes, 1)
    seen = [progress async for progress in retention.purge(DOMAIN, ended_before=END, batch_size=4)]
    assert seen[-1] == PurgeProgress(13, 13, None)
    assert len(seen) > 5  # batches of four, or smaller ones on a busy machine
    assert {each.oldest_left for each in seen[:-1]} == {END - days(90)}
    assert all(0 <= after.processes - before.processes <= 4 for before, after in pairwise(seen))
    assert await left(administrator) == {
        each.process_id for each in processes if each.completed_at is not None and each.completed_at > END
    }


async def test_every_progress_is_committed_and_stopping_leaves_nothing_open(
    retention: ProcessRetention, administrator: AsyncEngine, purger: AsyncEngine
) -> None:
    await store(administrator, [ended(created=90 - number) for number in range(4)])
    purge = retention.purge(DOMAIN, ended_before=END, batch_size=2)
    first = await anext(purge)
    assert first == PurgeProgress(2, 4, END - days(89))
    assert len(await left(administrator)) == 2
    await purge.aclose()
    held = text("SELECT count(*) FROM pg_locks WHERE relation = 'commandbus.process'::regclass")
    async with purger.connect() as connection:
        assert await connection.scalar(held) == 0
    assert await last(retention.purge(DOMAIN, ended_before=END)) == PurgeProgress(2, 4, None)


async def test_nothing_to_do(retention: ProcessRetention) -> None:
    for statuses in (set[ProcessStatus](), {ProcessStatus.FAILED}):
        purge = retention.purge(DOMAIN, ended_before=END, statuses=statuses)
        assert [progress async for progress in purge] == [PurgeProgress(0, 0, None)]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("statuses", {"statuses": [ProcessStatus.COMPLETED, ProcessStatus.PENDING]}),
        ("statuses", {"statuses": "COMPLETED"}),
        ("ended_before", {"ended_before": datetime(2026, 6, 1)}),  # noqa: DTZ001 - what is to be rejected
        ("process_type", {"process_type": ""}),
        ("batch_size", {"batch_size": 0}),
        ("batch_size", {"batch_size": True}),
        ("before_delete", {"before_delete": 7}),
    ],
)
async def test_arguments_that_do_not_fit(purger_level: str, field: str, changes: dict[str, Any]) -> None:
    del purger_level  # none of them reaches a server
    retention = ProcessRetention(create_async_engine("postgresql+psycopg://nobody@localhost:1/nothing"))
    arguments: dict[str, Any] = {"ended_before": END, **changes}
    with pytest.raises(InvalidInputError) as caught:
        retention.purge(DOMAIN, **arguments)
    assert caught.value.field == field
    if field not in {"batch_size", "before_delete"}:
        with pytest.raises(InvalidInputError) as caught:
            await retention.preview(DOMAIN, **arguments)
        assert caught.value.field == field


class Archive:
    """What `before_delete` was given."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.batches: list[list[ProcessWithTrail]] = []
        self._fail_at = fail_at

    async def __call__(self, conn: AsyncConnection, batch: list[ProcessWithTrail]) -> None:
        assert conn.in_transaction()
        if len(self.batches) == self._fail_at:
            raise OSError("the archive is full")
        self.batches.append(batch)


async def test_before_delete_gets_what_is_deleted(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(administrator)
    processes = [ended(created=90 - number) for number in range(3)]
    await store(administrator, [*processes, ended(ended=-1)], 3)
    stored = {each.process_id: await repository.get_by_id(DOMAIN, each.process_id) for each in processes}
    trails = {each.process_id: await repository.get_audit_trail(DOMAIN, each.process_id) for each in processes}
    archive = Archive()
    assert (await last(retention.purge(DOMAIN, ended_before=END, before_delete=archive))).steps == 9
    assert [each.process for each in archive.batches[0]] == list(stored.values())
    assert {each.process.process_id: each.trail for each in archive.batches[0]} == trails
    assert len(archive.batches) == 1


async def test_what_before_delete_raises_rolls_its_batch_back(
    retention: ProcessRetention, administrator: AsyncEngine
) -> None:
    await store(administrator, [ended(created=90 - number) for number in range(4)])
    archive = Archive(fail_at=1)
    purge = retention.purge(DOMAIN, ended_before=END, batch_size=2, before_delete=archive)
    assert await anext(purge) == PurgeProgress(2, 4, END - days(89))
    with pytest.raises(OSError, match="full"):
        await anext(purge)
    kept = await left(administrator)
    assert len(kept) == 2
    assert await steps_by_process(administrator) == dict.fromkeys(kept, 2)


@pytest.mark.own_database
async def test_what_before_delete_writes_is_committed_with_the_deletes(
    retention: ProcessRetention, administrator: AsyncEngine, database_url: str
) -> None:
    execute(database_url, "CREATE TABLE archive (process_id uuid PRIMARY KEY); GRANT INSERT ON archive TO PUBLIC")
    processes = [ended(created=90 - number) for number in range(5)]
    await store(administrator, processes)

    async def archive(conn: AsyncConnection, batch: list[ProcessWithTrail]) -> None:
        await conn.execute(
            text("INSERT INTO archive VALUES (:process_id)"),
            [{"process_id": each.process.process_id} for each in batch],
        )

    await anext(retention.purge(DOMAIN, ended_before=END, batch_size=2, before_delete=archive))
    async with administrator.connect() as connection:
        archived = set((await connection.execute(text("SELECT process_id FROM archive"))).scalars())
    assert archived == {each.process_id for each in processes} - await left(administrator)
    assert len(archived) == 2


async def test_a_process_that_before_delete_takes_up_again_stays(
    administrator: AsyncEngine, purger_level: str, database_url: str
) -> None:
    """Status and end are looked at once more, by the statement that deletes."""
    again, gone = ended(), ended()
    await store(administrator, [again, gone])
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(administrator)

    async def take_up(conn: AsyncConnection, batch: list[ProcessWithTrail]) -> None:
        [process] = [each.process for each in batch if each.process.process_id == again.process_id]
        process.status = ProcessStatus.PENDING
        await repository.update(process, conn)

    engine = create_async_engine(async_url(database_url), isolation_level=purger_level)
    purge = ProcessRetention(engine).purge(DOMAIN, ended_before=END, before_delete=take_up)
    assert await last(purge) == PurgeProgress(1, 2, None)
    assert await left(administrator) == {again.process_id}
    assert await steps_by_process(administrator) == {again.process_id: 2}
    await engine.dispose()


async def test_without_before_delete_no_state_is_read(
    retention: ProcessRetention, administrator: AsyncEngine, database_url: str
) -> None:
    unreadable = ended()
    await store(administrator, [unreadable])
    write_unchecked(database_url, "UPDATE commandbus.process SET state = '[]'")
    with pytest.raises(StoredDataError):
        await last(retention.purge(DOMAIN, ended_before=END, before_delete=Archive()))
    assert await left(administrator) == {unreadable.process_id}
    assert (await last(retention.purge(DOMAIN, ended_before=END))).processes == 1


async def test_times_that_python_does_not_know(
    retention: ProcessRetention, administrator: AsyncEngine, database_url: str
) -> None:
    await store(administrator, [ended(), ended(), ended(created=80, ended=-1)])
    execute(
        database_url,
        "UPDATE commandbus.process SET created_at = '0044-03-15 12:00 BC' WHERE created_at = "
        f"'{(END - days(90)).isoformat()}'",
    )
    seen = [progress async for progress in retention.purge(DOMAIN, ended_before=END, batch_size=1)]
    assert seen[0].oldest_left == datetime.min.replace(tzinfo=UTC)
    assert seen[-1] == PurgeProgress(2, 4, None)


async def test_a_reused_id_is_a_new_process(retention: ProcessRetention, administrator: AsyncEngine) -> None:
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(administrator)
    old = ended()
    await store(administrator, [old])
    await last(retention.purge(DOMAIN, ended_before=END))
    new: ProcessMetadata = ended(process_id=old.process_id)
    await repository.save(new)
    assert new.version == 1
    assert await repository.get_audit_trail(DOMAIN, old.process_id) == []


@pytest.mark.own_database
async def test_in_another_schema(database_url: str, server: Server, purger_level: str) -> None:
    execute(database_url, "ALTER SCHEMA commandbus RENAME TO elsewhere")
    engines = [
        create_async_engine(async_url(url), isolation_level=level)
        for url, level in [(database_url, "READ COMMITTED"), (as_role(database_url, server.purger), purger_level)]
    ]
    administrator, purger = (
        engine.execution_options(schema_translate_map={"commandbus": "elsewhere"}) for engine in engines
    )
    await retain(purger, administrator)
    for engine in engines:
        await engine.dispose()
