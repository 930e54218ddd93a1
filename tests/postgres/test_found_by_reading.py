"""Combinations that a reader of the code found: each part was right, and what they did together was not."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StepReply,
)
from tests.support.databases import write_unchecked
from tests.support.items import DOMAIN, for_process, new_entry, new_process

Repository = PostgresProcessRepository[JsonObject]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def test_a_damaged_row_leaves_a_neighbour_without_a_type_readable(
    repository: Repository, database_url: str
) -> None:
    """Other software may write an empty process type. It is read, beside a row that cannot be read, too."""
    good, damaged = new_process(), new_process()
    await repository.save_many([good, damaged])
    write_unchecked(
        database_url,
        f"UPDATE commandbus.process SET process_type = '' WHERE process_id = '{good.process_id}'; "
        f"UPDATE commandbus.process SET state = '[]' WHERE process_id = '{damaged.process_id}'",
    )
    [found] = await repository.find_by_status(DOMAIN, [ProcessStatus.PENDING], on_unreadable="skip")
    assert (found.process_id, found.process_type, found.state) == (good.process_id, "", good.state)


async def test_a_step_without_a_name_is_in_the_way_of_another_one(
    repository: Repository, database_url: str, process: ProcessMetadata
) -> None:
    entry = new_entry()
    await repository.save(process, sent=entry)
    write_unchecked(database_url, "UPDATE commandbus.process_audit SET step_name = ''")
    with pytest.raises(StepAlreadyLoggedError) as caught:
        await repository.log_step(DOMAIN, process.process_id, entry)
    assert caught.value.recorded.step_name == ""
    assert caught.value.different == ("step_name",)


async def test_a_redelivery_does_not_hide_that_the_process_has_ended(
    repository: Repository, process: ProcessMetadata
) -> None:
    """The second worker's object lacks the time at which the first one ended the process, and must not remove it."""
    entry = new_entry()
    await repository.save(process, sent=entry)
    first, second = [await repository.get_by_id(DOMAIN, process.process_id) for _ in range(2)]
    assert first is not None
    assert second is not None
    reply = StepReply(entry.command_id, ReplyOutcome.SUCCESS)
    first.status = second.status = ProcessStatus.COMPLETED
    first.completed_at = NOON
    assert await repository.advance(first, reply=reply)
    assert not await repository.advance(second, reply=reply)
    with pytest.raises(ConcurrentUpdateError, match=r"advance\(\) returned False"):
        await repository.update(second)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert found.completed_at == NOON


async def test_the_command_that_differs_is_named_before_the_one_that_is_the_same(
    repository: Repository, process: ProcessMetadata
) -> None:
    same, other = new_entry("reserve"), new_entry("charge")
    await repository.save(process)
    await repository.log_many(for_process(DOMAIN, process.process_id, [same, other]))
    changed = other.model_copy(update={"step_name": "refund"})
    with pytest.raises(StepAlreadyLoggedError) as caught:
        await repository.advance(process, sent=[same, changed])
    assert (caught.value.command_id, caught.value.different) == (other.command_id, ("step_name",))


async def test_numbers_that_only_the_database_tells_apart_are_another_command(
    repository: Repository, database_url: str, process: ProcessMetadata
) -> None:
    entry = new_entry(command_data={"price": 0.1})
    await repository.save(process, sent=entry)
    write_unchecked(
        database_url, "UPDATE commandbus.process_audit SET command_data = '{\"price\": 0.1000000000000000000001}'"
    )
    with pytest.raises(StepAlreadyLoggedError, match="differ in command_data") as caught:
        await repository.log_step(DOMAIN, process.process_id, entry)
    assert not caught.value.is_same


async def test_many_items_on_an_aborted_transaction_are_refused(repository: Repository, engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        with pytest.raises(DBAPIError):
            await conn.execute(text("SELECT 1 / 0"))
        for call in (repository.save_many([new_process()], conn), repository.log_many([], conn)):
            with pytest.raises(InvalidInputError, match="an earlier error aborted"):
                await call
