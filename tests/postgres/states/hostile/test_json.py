"""JSON that is large or nests deeply is stored and read back equal, or refused."""

from typing import Any
from uuid import UUID

import pytest
from pydantic import JsonValue, ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessMetadata,
)
from tests.support.hostile import CASES, MEGABYTE, Typed, made, store


def nested(depth: int) -> JsonValue:
    value: JsonValue = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


LARGE: dict[str, JsonObject] = {
    "one string of a megabyte": {"text": "é" * (MEGABYTE // 2)},
    "one key of a megabyte": {"k" * MEGABYTE: 1},
    "50,000 keys": {f"key {number}": number for number in range(50_000)},
    "100,000 elements": {"list": list(range(100_000))},
    "100 deep": {"deep": nested(100)},
    "a number of 4,000 digits": {"n": 10**4000 - 1},
}


@pytest.mark.parametrize("name", LARGE)
async def test_large_json_is_stored_and_read_back_equal(
    repository: PostgresProcessRepository[JsonObject], process_id: UUID, name: str
) -> None:
    process, entry = made(process_id, {})
    process.state = entry.command_data = entry.reply_data = LARGE[name]
    await store(repository, process, entry)
    assert await repository.get_by_id(CASES, process_id) == process
    assert await repository.get_audit_trail(CASES, process_id) == [entry]


@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
@pytest.mark.parametrize("place", ["state", "typed state", "command_data", "reply_data"])
async def test_json_that_nests_too_deep_is_refused_before_any_sql(
    owner: AsyncEngine, process_id: UUID, statements: list[str], depth: int, place: str
) -> None:
    deep: JsonObject = {"deep": nested(depth)}

    async def given_at_once() -> None:
        process, entry = made(process_id, {})
        match place:
            case "state":
                fields: dict[str, Any] = {**dict(process), "state": deep}
                process = ProcessMetadata[JsonObject](**fields)
                await PostgresProcessRepository[JsonObject](owner).save(process)
            case "typed state":
                process.state = Typed(text="", data=deep)
                await PostgresProcessRepository[Any](owner, state_type=Typed).save(process)
            case _:
                setattr(entry, place, deep)
                await PostgresProcessRepository[JsonObject](owner).log_step(CASES, process_id, entry)

    async def put_in_place() -> None:
        process, entry = made(process_id, {})
        match place:
            case "state":
                process.state["deep"] = deep["deep"]
                await PostgresProcessRepository[JsonObject](owner).save(process)
            case "typed state":
                process.state = Typed.model_construct(text="", data=deep)
                await PostgresProcessRepository[Any](owner, state_type=Typed).save(process)
            case _:
                getattr(entry, place)["deep"] = deep["deep"]
                await PostgresProcessRepository[JsonObject](owner).log_step(CASES, process_id, entry)

    for attempt in (given_at_once, put_in_place):
        with pytest.raises((ValidationError, InvalidInputError)):
            await attempt()
    assert statements == []
