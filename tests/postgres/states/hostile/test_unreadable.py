"""What only plain SQL can write is read right, or is an error of its row."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessStatus,
    StoredDataError,
)
from tests.support.hostile import CASES, made

# What only plain SQL can write: values in a JSON object, as SQL expressions.
UNREADABLE = {
    "500 deep": "repeat('[', 500) || repeat(']', 500)",
    "5,000 deep": "repeat('[', 5000) || repeat(']', 5000)",
    "5,000 objects deep": "repeat('{\"a\": ', 5000) || '1' || repeat('}', 5000)",
    "a number of 5,000 digits": "repeat('7', 5000)",
    "a fraction too large for a float": "'1' || repeat('0', 400) || '.5'",
}
READABLE: dict[str, tuple[str, JsonValue]] = {
    "100 deep": ("repeat('[', 100) || repeat(']', 100)", json.loads("[" * 100 + "]" * 100)),
    "five megabytes": ("'\"' || repeat('é', 2500000) || '\"'", "é" * 2_500_000),
    "a number of 4,000 digits": ("repeat('7', 4000)", (10**4000 - 1) // 9 * 7),
    "an integer beyond floats": ("'1e400'", 10**400),
}


def in_an_object(value: str) -> str:
    return f"'{{\"a\": ' || {value} || '}}'"


BAD = {
    **{name: in_an_object(value) for name, value in UNREADABLE.items()},
    "array": "'[1]'",
    "string": "'\"text\"'",
    "number": "'1'",
    "boolean": "'true'",
}


def written_by_plain_sql(
    watch: psycopg.Connection[Any], process_id: UUID, *, state: str = "'{}'", data: str = "NULL", reply: str = "NULL"
) -> None:
    """Write a process, and a replied step with the process's id as its command's, around SQL expressions for JSON."""
    key = {"domain": CASES, "id": process_id}
    watch.execute(
        "INSERT INTO commandbus.process (domain, process_id, process_type, status, state) "
        f"VALUES (%(domain)s, %(id)s, 'order', 'FAILED', ({state})::jsonb)".encode(),
        key,
    )
    watch.execute(
        "INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, "
        "sent_at, reply_outcome, reply_data, received_at) VALUES (%(domain)s, %(id)s, 'reserve', %(id)s, 'Reserve', "
        f"({data})::jsonb, now(), 'SUCCESS', ({reply})::jsonb, now())".encode(),
        key,
    )


async def assert_goes_on_working(repository: PostgresProcessRepository[JsonObject], process_id: UUID) -> None:
    """Other processes can be written and read, and what need not be parsed of the bad one can be read too."""
    other, _ = made(process_id, {"domain": "other cases"})
    await repository.save(other)
    assert await repository.get_by_id(other.domain, process_id) == other
    assert await repository.find_by_status(other.domain, [other.status]) == [other]
    assert await repository.get_completed_steps(CASES, process_id) == ["reserve"]


@pytest.mark.parametrize("state", [*BAD.values(), "'null'"], ids=[*BAD, "null"])
async def test_a_stored_state_that_cannot_be_read_is_an_error_of_its_row(
    owner: AsyncEngine, watch: psycopg.Connection[Any], process_id: UUID, state: str
) -> None:
    written_by_plain_sql(watch, process_id, state=state)
    plain = PostgresProcessRepository[JsonObject](owner)
    typed = PostgresProcessRepository[Any](owner, state_type=dict[str, JsonValue])
    for repository in (plain, typed):
        async with owner.begin() as conn:
            for read in (
                repository.get_by_id(CASES, process_id),
                repository.find_by_status(CASES, [ProcessStatus.FAILED]),
                repository.claim(CASES, [ProcessStatus.FAILED], conn, limit=1),
            ):
                with pytest.raises(StoredDataError) as caught:
                    await read
                assert (caught.value.domain, caught.value.process_id) == (CASES, process_id)
                assert len(str(caught.value)) < 2_000  # an error is logged; it must not carry the state along
            # The caller's transaction goes on too.
            assert await repository.get_completed_steps(CASES, process_id, conn) == ["reserve"]
    await assert_goes_on_working(plain, process_id)


@pytest.mark.parametrize("column", ["data", "reply"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_stored_data_of_a_step_that_cannot_be_read_is_an_error_of_its_row(
    repository: PostgresProcessRepository[JsonObject],
    watch: psycopg.Connection[Any],
    process_id: UUID,
    column: str,
    value: str,
) -> None:
    written_by_plain_sql(watch, process_id, **{column: value})
    with pytest.raises(StoredDataError, match=str(process_id)) as caught:
        await repository.get_audit_trail(CASES, process_id)
    assert (caught.value.domain, caught.value.process_id) == (CASES, process_id)
    assert f"command {process_id}" in str(caught.value)
    assert len(str(caught.value)) < 2_000
    await assert_goes_on_working(repository, process_id)


@pytest.mark.parametrize("name", READABLE)
async def test_what_plain_sql_wrote_and_can_be_read_is_read_right(
    repository: PostgresProcessRepository[JsonObject], watch: psycopg.Connection[Any], process_id: UUID, name: str
) -> None:
    expression, expected = READABLE[name]
    written = in_an_object(expression)
    written_by_plain_sql(watch, process_id, state=written, data=written, reply=written)
    found = await repository.get_by_id(CASES, process_id)
    assert found is not None
    assert found.state == {"a": expected}
    [entry] = await repository.get_audit_trail(CASES, process_id)
    assert (entry.command_data, entry.reply_data) == ({"a": expected}, {"a": expected})


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"])
@pytest.mark.parametrize("column", ["created_at", "updated_at", "completed_at"])
async def test_a_stored_time_that_python_does_not_have_is_an_error_of_its_row(
    repository: PostgresProcessRepository[JsonObject],
    watch: psycopg.Connection[Any],
    process_id: UUID,
    column: str,
    time: str,
) -> None:
    written_by_plain_sql(watch, process_id)
    watch.execute(f"UPDATE commandbus.process SET {column} = %s WHERE process_id = %s".encode(), (time, process_id))
    with pytest.raises(StoredDataError) as caught:
        await repository.get_by_id(CASES, process_id)
    assert (caught.value.domain, caught.value.process_id) == (CASES, process_id)


@pytest.mark.parametrize("state", ["'{}'", in_an_object("'\"' || repeat('7', 400) || '\"'")], ids=["plain", "checked"])
@pytest.mark.parametrize("year", ["0002", "1880", "2026"])
async def test_a_time_is_read_right_in_any_time_zone_of_the_session(
    owner: AsyncEngine, watch: psycopg.Connection[Any], process_id: UUID, year: str, state: str
) -> None:
    """In 1880 Amsterdam's clocks differed from UTC by minutes and seconds."""
    written_by_plain_sql(watch, process_id, state=state)
    time = datetime.fromisoformat(f"{year}-07-01T12:30:15.000120+00:00")
    watch.execute(b"UPDATE commandbus.process SET created_at = %s WHERE process_id = %s", (time, process_id))
    repository = PostgresProcessRepository(owner)
    async with owner.begin() as conn:
        await conn.exec_driver_sql("SET LOCAL TIME ZONE 'Europe/Amsterdam'")
        found = await repository.get_by_id(CASES, process_id, conn)
        assert found is not None
        assert (found.created_at, found.created_at.tzinfo) == (time, UTC)
        assert await repository.find_by_status(CASES, [found.status], conn) == [found]


async def test_a_json_null_that_plain_sql_wrote_is_no_data(
    repository: PostgresProcessRepository[JsonObject], watch: psycopg.Connection[Any], process_id: UUID
) -> None:
    written_by_plain_sql(watch, process_id, data="'null'", reply="'null'")
    [entry] = await repository.get_audit_trail(CASES, process_id)
    assert (entry.command_data, entry.reply_data) == (None, None)
