"""A string made to break something is stored and read back equal, or refused with a typed error."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessStatus,
)
from tests.support.hostile import PLACES, REFUSED, STORED, STRINGS, Typed, is_storable, made, store, texts_of
from tests.support.items import DOMAIN


@pytest.mark.parametrize("typed", [False, True], ids=["plain", "typed"])
@pytest.mark.parametrize("name", STORED)
async def test_a_string_is_stored_wherever_it_may_be_and_read_back_equal(
    owner: AsyncEngine, process_id: UUID, name: str, *, typed: bool
) -> None:
    text = STRINGS[name]
    elsewhere = {"state", "key of state"} if typed else {"typed state"}
    wanted = [place for place in PLACES if is_storable(text, place) and place not in elsewhere]
    repository = PostgresProcessRepository[Any](owner, state_type=Typed if typed else None)
    process, entry = made(process_id, dict.fromkeys(wanted, text))
    await store(repository, process, entry)
    # Once more: the database compares what is there with what is given.
    await repository.log_step(process.domain, process_id, entry)
    await repository.update_step_reply(process.domain, process_id, entry.command_id, entry)
    found = await repository.get_by_id(process.domain, process_id)
    trail = await repository.get_audit_trail(process.domain, process_id)
    assert (found, trail) == (process, [entry])
    assert found is not None
    texts = texts_of(found, trail[0])
    assert [place for place in wanted if texts[place] != text] == []
    assert await repository.get_completed_steps(process.domain, process_id) == [entry.step_name]
    waiting = [ProcessStatus.WAITING_FOR_REPLY]
    assert await repository.find_by_status(process.domain, waiting) == [process]
    async with owner.begin() as conn:
        claimed = await repository.claim(process.domain, waiting, conn, limit=9, process_type=process.process_type)
        assert claimed == [process]


@pytest.mark.parametrize(("name", "place"), REFUSED)
async def test_a_string_that_cannot_be_stored_is_refused_before_any_sql(
    owner: AsyncEngine, process_id: UUID, statements: list[str], name: str, place: str
) -> None:
    repository = PostgresProcessRepository[Any](owner, state_type=Typed if place == "typed state" else None)

    async def attempt() -> None:
        # What belongs to the process is refused with the process; what belongs to the step, with the step.
        process, entry = made(process_id, {place: STRINGS[name]})
        if place in {"step_name", "command_type", "command_data", "key of command_data", "reply_data"}:
            await repository.log_step(process.domain, process_id, entry)
        else:
            await repository.save(process)

    with pytest.raises((ValidationError, InvalidInputError)) as caught:
        await attempt()
    assert place.removeprefix("key of ").removeprefix("typed ") in str(caught.value)
    assert statements == []


READERS: dict[str, Callable[[PostgresProcessRepository[Any], str], Any]] = {
    "get_by_id": lambda repository, domain: repository.get_by_id(domain, UUID(int=1)),
    "find_by_status": lambda repository, domain: repository.find_by_status(domain, list(ProcessStatus)),
    "get_audit_trail": lambda repository, domain: repository.get_audit_trail(domain, UUID(int=1)),
    "get_completed_steps": lambda repository, domain: repository.get_completed_steps(domain, UUID(int=1)),
}


@pytest.mark.parametrize("reader", READERS)
async def test_a_domain_that_is_looked_for_finds_nothing_or_is_refused(
    repository: PostgresProcessRepository[JsonObject], statements: list[str], reader: str, subtests: pytest.Subtests
) -> None:
    for name, text in STRINGS.items():
        with subtests.test(name):
            statements.clear()
            if is_storable(text, "domain"):
                assert not await READERS[reader](repository, text)
                assert len(statements) == 1
            else:
                with pytest.raises(InvalidInputError):
                    await READERS[reader](repository, text)
                assert statements == []


async def test_no_string_of_them_is_a_status(
    repository: PostgresProcessRepository[JsonObject], statements: list[str], subtests: pytest.Subtests
) -> None:
    """Statuses are written into the statement itself, so they must not carry anything else."""
    for name, text in STRINGS.items():
        with subtests.test(name):
            hostile: Any = [text, f"WAITING{text}" if text else "WAITING'", ProcessStatus.PENDING]
            with pytest.raises(InvalidInputError, match="statuses"):
                await repository.find_by_status(DOMAIN, hostile)
    assert statements == []
