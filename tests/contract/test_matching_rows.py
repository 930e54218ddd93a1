"""An object that does not match its row is never written, whatever happened to the transaction before."""

import pickle
from collections.abc import Awaitable, Callable
from copy import deepcopy
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessNotFoundError,
)
from tests.support.items import DOMAIN, new_process

Repository = PostgresProcessRepository[JsonObject]
Write = Callable[[Repository, ProcessMetadata, AsyncConnection | None], Awaitable[object]]


async def update(repository: Repository, process: ProcessMetadata, conn: AsyncConnection | None) -> None:
    await repository.update(process, conn)


async def advance(repository: Repository, process: ProcessMetadata, conn: AsyncConnection | None) -> None:
    await repository.advance(process, conn)


async def advance_with_a_command(
    repository: Repository, process: ProcessMetadata, conn: AsyncConnection | None
) -> None:
    entry = ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge")
    assert await repository.advance(process, conn, sent=entry)


WRITES: list[Write] = [update, advance, advance_with_a_command]
each_write = pytest.mark.parametrize("write", WRITES, ids=lambda each: each.__name__)


async def two_readers(repository: Repository) -> tuple[ProcessMetadata, ProcessMetadata]:
    process = new_process()
    process.state = {"paid": 0}
    await repository.save(process)
    mine, other = [await repository.get_by_id(DOMAIN, process.process_id) for _ in range(2)]
    assert mine is not None
    assert other is not None
    return mine, other


async def paid(repository: Repository, process: ProcessMetadata) -> object:
    stored = await repository.get_by_id(DOMAIN, process.process_id)
    assert stored is not None
    return stored.state["paid"]


async def rolled_back(engine: AsyncEngine, repository: Repository, write: Write, process: ProcessMetadata) -> None:
    async with engine.connect() as conn:
        await write(repository, process, conn)
        await conn.rollback()


@each_write
async def test_after_a_rollback_somebody_elses_commit_is_not_overwritten(
    repository: Repository, engine: AsyncEngine, write: Write
) -> None:
    mine, other = await two_readers(repository)
    await rolled_back(engine, repository, write, mine)
    other.state["paid"] = 100
    await repository.update(other)
    assert mine.version == other.version == 2
    with pytest.raises(ConcurrentUpdateError) as caught:
        await write(repository, mine, None)
    assert (caught.value.expected_version, caught.value.actual_version) == (2, 2)
    assert await paid(repository, mine) == 100


@each_write
@pytest.mark.parametrize("host_sets_the_version_back", [False, True])
async def test_after_a_rollback_the_same_object_can_be_written_if_nobody_else_wrote(
    repository: Repository, engine: AsyncEngine, write: Write, *, host_sets_the_version_back: bool
) -> None:
    mine, other = await two_readers(repository)
    for _ in range(3):
        await rolled_back(engine, repository, write, mine)
        if host_sets_the_version_back:
            mine.version = 1
    mine.state["paid"] = 1
    await write(repository, mine, None)
    assert (mine.version, await paid(repository, mine)) == (2, 1)
    with pytest.raises(ConcurrentUpdateError):
        await write(repository, other, None)


def pickled(process: ProcessMetadata) -> ProcessMetadata:
    made: ProcessMetadata = pickle.loads(pickle.dumps(process))  # noqa: S301 - it was made here
    return made


@each_write
@pytest.mark.parametrize("copied", [deepcopy, pickled, ProcessMetadata.model_copy], ids=lambda each: each.__name__)
async def test_a_copy_remembers_too(
    repository: Repository, engine: AsyncEngine, write: Write, copied: Callable[[ProcessMetadata], ProcessMetadata]
) -> None:
    mine, other = await two_readers(repository)
    await rolled_back(engine, repository, write, mine)
    await repository.update(other)
    with pytest.raises(ConcurrentUpdateError):
        await write(repository, copied(mine), None)


@each_write
@pytest.mark.parametrize("by_plain_sql", [False, True])
async def test_within_one_transaction_after_a_rollback_to_a_savepoint(
    repository: Repository, engine: AsyncEngine, write: Write, *, by_plain_sql: bool
) -> None:
    """The time of the transaction and the version are the same then."""
    mine, other = await two_readers(repository)
    other.state["paid"] = 100
    async with engine.begin() as conn:
        if by_plain_sql:
            await conn.execute(text("SAVEPOINT here"))
            await write(repository, mine, conn)
            await conn.execute(text("ROLLBACK TO SAVEPOINT here"))
        else:
            savepoint = await conn.begin_nested()
            await write(repository, mine, conn)
            await savepoint.rollback()
        await repository.update(other, conn)
        assert (mine.version, mine.updated_at) == (other.version, other.updated_at)
        with pytest.raises(ConcurrentUpdateError):
            await write(repository, mine, conn)
    assert await paid(repository, mine) == 100


async def test_what_was_written_before_a_savepoint_can_be_written_on(
    repository: Repository, engine: AsyncEngine
) -> None:
    mine, _ = await two_readers(repository)
    async with engine.begin() as conn:
        await repository.update(mine, conn)
        savepoint = await conn.begin_nested()
        await repository.update(mine, conn)
        await repository.update(mine, conn)
        await savepoint.rollback()
        mine.state["paid"] = 7
        await repository.update(mine, conn)
        assert mine.version == 3
    assert await paid(repository, mine) == 7


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_save_that_was_rolled_back_is_not_the_row_that_somebody_else_saved(
    repository: Repository, engine: AsyncEngine, *, bulk: bool
) -> None:
    mine = new_process()
    theirs = mine.model_copy(deep=True, update={"state": {"paid": 100}})  # of the same moment, too
    async with engine.connect() as conn:
        if bulk:
            await repository.save_many([mine], conn)
        else:
            await repository.save(mine, conn)
        await conn.rollback()
    with pytest.raises(ProcessNotFoundError):
        await repository.update(mine)
    await repository.save(theirs)
    assert mine.version == theirs.version == 1
    with pytest.raises(ConcurrentUpdateError):
        await repository.update(mine)
    assert await paid(repository, mine) == 100


async def test_what_was_just_saved_in_bulk_can_be_updated(repository: Repository) -> None:
    processes = [new_process() for _ in range(3)]
    await repository.save_many(processes)
    for process in processes:
        await repository.update(process)
        assert process == await repository.get_by_id(DOMAIN, process.process_id)


async def test_a_row_that_was_deleted_and_saved_anew(repository: Repository, administrator: AsyncEngine) -> None:
    mine, _ = await two_readers(repository)
    async with administrator.begin() as conn:
        await conn.execute(text("DELETE FROM commandbus.process"))
    await repository.save(mine.model_copy(update={"state": {"paid": 100}, "version": None}))
    with pytest.raises(ConcurrentUpdateError):
        await repository.update(mine)


@each_write
async def test_after_a_commit_that_fails(repository: Repository, engine: AsyncEngine, write: Write) -> None:
    mine, other = await two_readers(repository)

    def veto(_connection: object) -> None:
        raise RuntimeError("the host's veto")

    conn = await engine.connect()
    await write(repository, mine, conn)
    event.listen(conn.sync_connection, "commit", veto)
    with pytest.raises(RuntimeError, match="veto"):
        await conn.commit()
    event.remove(conn.sync_connection, "commit", veto)
    await conn.rollback()
    await conn.close()
    other.state["paid"] = 100
    await repository.update(other)
    with pytest.raises(ConcurrentUpdateError):
        await write(repository, mine, None)
    assert await paid(repository, mine) == 100


@pytest.mark.parametrize("change", ["updated_at = now()", "version = version + 1", "status = 'FAILED'"])
async def test_what_plain_sql_wrote_is_not_overwritten(
    repository: Repository, administrator: AsyncEngine, change: str
) -> None:
    mine, _ = await two_readers(repository)
    async with administrator.begin() as conn:
        await conn.execute(text(f"UPDATE commandbus.process SET {change}"))
    with pytest.raises(ConcurrentUpdateError):
        await repository.update(mine)


async def test_another_process_type_is_refused(repository: Repository, subtests: pytest.Subtests) -> None:
    mine, _ = await two_readers(repository)
    mine.process_type = "refund"
    for write in WRITES:
        with subtests.test(write.__name__):
            with pytest.raises(InvalidInputError) as caught:
                await write(repository, mine, None)
            assert caught.value.field == "process_type"
