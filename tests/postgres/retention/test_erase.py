"""What `erase` takes away, and what it leaves."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    PostgresProcessRepository,
    ProcessNotEndedError,
    ProcessNotFoundError,
    ProcessRetention,
    ProcessStatus,
    StepReply,
)
from commandbus_process.models import ReplyOutcome
from tests.support.databases import write_unchecked
from tests.support.ended import ended, steps, store
from tests.support.items import DOMAIN


@pytest.fixture
def repository(administrator: AsyncEngine) -> PostgresProcessRepository[JsonObject]:
    return PostgresProcessRepository(administrator)


@pytest.fixture(params=["own transaction", "caller's connection"])
async def conn(
    request: pytest.FixtureRequest, purger: AsyncEngine, purger_level: str
) -> AsyncIterator[AsyncConnection | None]:
    """The purger's connection, or none."""
    if request.param == "own transaction":
        yield None
        return
    del purger_level
    async with purger.connect() as connection:
        yield connection
        await connection.rollback()


async def commit(conn: AsyncConnection | None) -> None:
    if conn is not None:
        await conn.commit()


async def test_the_contents_go_and_the_rest_stays(
    retention: ProcessRetention,
    administrator: AsyncEngine,
    repository: PostgresProcessRepository[JsonObject],
    conn: AsyncConnection | None,
) -> None:
    process, other = ended(error_code="E7", current_step="ship"), ended()
    await store(administrator, [process, other])
    before = await repository.get_by_id(DOMAIN, process.process_id)
    trail = await repository.get_audit_trail(DOMAIN, process.process_id)
    untouched = await repository.get_by_id(DOMAIN, other.process_id)
    assert before is not None
    assert await retention.erase(DOMAIN, process.process_id, conn)
    await commit(conn)

    emptied: dict[str, object] = {"state": {}, "error_message": None, "business_key": None, "version": 2}
    assert await repository.get_by_id(DOMAIN, process.process_id) == before.model_copy(update=emptied)
    without_data = [entry.model_copy(update={"command_data": None, "reply_data": None}) for entry in trail]
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == without_data
    assert await repository.get_by_id(DOMAIN, other.process_id) == untouched
    assert all(entry.command_data for entry in await repository.get_audit_trail(DOMAIN, other.process_id))
    async with administrator.connect() as connection:
        everything = text(
            "SELECT p::text || a::text FROM commandbus.process p "
            "JOIN commandbus.process_audit a USING (process_id) WHERE process_id = :process_id"
        )
        texts = (await connection.execute(everything, {"process_id": process.process_id})).scalars().all()
    assert len(texts) == 2
    assert not [each for each in texts if "Ada" in each or "Main" in each or "order 7" in each]


async def test_a_second_time_there_is_nothing_to_erase(
    retention: ProcessRetention,
    administrator: AsyncEngine,
    repository: PostgresProcessRepository[JsonObject],
    conn: AsyncConnection | None,
) -> None:
    process = ended()
    await store(administrator, [process])
    assert [await retention.erase(DOMAIN, process.process_id, conn) for _ in range(3)] == [True, False, False]
    await commit(conn)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert found.version == 2


async def test_an_object_that_was_read_before_cannot_write_its_state_back(
    retention: ProcessRetention, administrator: AsyncEngine, repository: PostgresProcessRepository[JsonObject]
) -> None:
    process = ended()
    await store(administrator, [process])
    read = await repository.get_by_id(DOMAIN, process.process_id)
    assert read is not None
    await retention.erase(DOMAIN, process.process_id)
    read.error_code = "late"
    with pytest.raises(ConcurrentUpdateError):
        await repository.update(read)
    with pytest.raises(ConcurrentUpdateError):
        await repository.advance(read, sent=steps(1))
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert found.state == {}


async def test_a_reply_that_comes_later_is_erased_by_the_next_call(
    retention: ProcessRetention, administrator: AsyncEngine, repository: PostgresProcessRepository[JsonObject]
) -> None:
    process, [open_step] = ended(), steps(1)
    open_step = open_step.model_copy(update={"reply_outcome": None, "reply_data": None, "received_at": None})
    await store(administrator, [process], 0)
    await repository.log_step(DOMAIN, process.process_id, open_step)
    assert await retention.erase(DOMAIN, process.process_id)
    reply = StepReply(open_step.command_id, ReplyOutcome.SUCCESS, {"street": "Main"})
    await repository.update_step_reply(DOMAIN, process.process_id, open_step.command_id, reply)
    assert await retention.erase(DOMAIN, process.process_id)
    [entry] = await repository.get_audit_trail(DOMAIN, process.process_id)
    assert (entry.reply_outcome, entry.reply_data) == (ReplyOutcome.SUCCESS, None)
    assert not await retention.erase(DOMAIN, process.process_id)


@pytest.mark.parametrize("status", [status for status in ProcessStatus if not status.is_terminal])
async def test_a_process_that_has_not_ended_is_not_erased(
    retention: ProcessRetention,
    administrator: AsyncEngine,
    repository: PostgresProcessRepository[JsonObject],
    status: ProcessStatus,
) -> None:
    process = ended(status=status)
    await store(administrator, [process])
    before = await repository.get_by_id(DOMAIN, process.process_id)
    trail = await repository.get_audit_trail(DOMAIN, process.process_id)
    with pytest.raises(ProcessNotEndedError) as caught:
        await retention.erase(DOMAIN, process.process_id)
    assert (caught.value.status, caught.value.process_id) == (status.value, process.process_id)
    assert await repository.get_by_id(DOMAIN, process.process_id) == before
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == trail


async def test_a_status_of_newer_software_has_not_ended(
    retention: ProcessRetention, administrator: AsyncEngine, database_url: str
) -> None:
    process = ended()
    await store(administrator, [process])
    write_unchecked(database_url, "UPDATE commandbus.process SET status = 'PAUSED'")
    with pytest.raises(ProcessNotEndedError, match="PAUSED"):
        await retention.erase(DOMAIN, process.process_id)


async def test_no_such_process(retention: ProcessRetention, conn: AsyncConnection | None) -> None:
    with pytest.raises(ProcessNotFoundError):
        await retention.erase(DOMAIN, uuid4(), conn)


async def test_on_your_connection_it_takes_effect_when_you_commit(
    retention: ProcessRetention,
    administrator: AsyncEngine,
    purger: AsyncEngine,
    repository: PostgresProcessRepository[JsonObject],
    purger_level: str,
) -> None:
    process = ended()
    await store(administrator, [process])
    async with purger.connect() as conn:
        assert await retention.erase(DOMAIN, process.process_id, conn)
        await conn.rollback()
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert (found.state == {}) == (purger_level == "AUTOCOMMIT")
