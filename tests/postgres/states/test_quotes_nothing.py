"""Errors quote no state and no payload: not a tag, not a key, not the text of a validator or of a serialiser."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticCustomError, PydanticKnownError
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    PostgresProcessRepository,
    ProcessAuditEntry,
    StoredDataError,
    StoredStateError,
)
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process
from tests.support.quotes_nothing import SECRET, check_quotes_nothing
from tests.support.states import process_with


@pytest.fixture(scope="module")
async def shared_engine(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


class Card(BaseModel):
    kind: Literal["card"]
    number: int = Field(default=0, gt=0)


class Cash(BaseModel):
    kind: Literal["cash"]


def refuse(error: Exception) -> Callable[[Any], Any]:
    def validate(value: Any) -> Any:
        if value == SECRET:
            raise error
        return value

    return validate


def validated(error: Exception) -> Any:
    return AfterValidator(refuse(error))


class Impatient(BaseModel):
    model_config = ConfigDict(extra="forbid")
    payment: Annotated[Card | Cash, Field(discriminator="kind")] | None = None
    either: Card | Cash | None = None
    by_name: dict[str, int] = {}
    by_number: dict[int, int] = {}
    by_names: dict[str, dict[str, list[Card]]] = {}
    on: date | None = None
    price: Decimal = Field(default=Decimal(1), max_digits=4)
    aliased: int = Field(default=0, alias="theAlias")
    value: Annotated[str, validated(ValueError(SECRET))] = ""
    asserted: Annotated[str, validated(AssertionError(SECRET))] = ""
    custom: Annotated[str, validated(PydanticCustomError("bad_name", "{name} is bad", {"name": SECRET}))] = ""
    imitated: Annotated[str, validated(PydanticCustomError("missing", "{name} is bad", {"name": SECRET}))] = ""
    known: Annotated[str, validated(PydanticKnownError("json_invalid", {"error": SECRET}))] = ""
    key_error: Annotated[str, validated(KeyError(SECRET))] = ""
    runtime: Annotated[str, validated(RuntimeError(SECRET))] = ""
    unicode: Annotated[str, validated(UnicodeError(SECRET))] = ""


UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "tag": ({"payment": {"kind": SECRET}}, "payment: union_tag_invalid"),
    "member of a union": (
        {"either": {"kind": SECRET, "number": 1}},
        "either.Card.kind: Input should be 'card'; either.Cash.k",
    ),
    "constraint": ({"payment": {"kind": "card", "number": 0}}, "payment.card.number: Input should be greater than 0"),
    "key": ({"by_name": {SECRET: "x"}}, "by_name.*: Input should be a valid integer"),
    "key that is no number": ({"by_number": {SECRET: 1}}, "by_number.*.*: Input should be a valid integer"),
    "keys on the way": (
        {"by_names": {SECRET: {SECRET: [{"kind": "card"}, {"kind": SECRET}]}}},
        "by_names.*.*.1.kind: Input should be 'card'",
    ),
    "extra field": ({SECRET: 1}, "*: Extra inputs are not permitted"),
    "parser's text": ({"on": SECRET}, "on: date_from_datetime_parsing"),
    "digits": ({"price": "123.45"}, "price: Decimal input should have no more than 4 digits in total"),
    "alias": ({"theAlias": SECRET}, "theAlias: Input should be a valid integer"),
    "validator": ({"value": SECRET}, "value: value_error"),
    "assertion": ({"asserted": SECRET}, "asserted: assertion_error"),
    "custom error": ({"custom": SECRET}, "custom: bad_name"),
    "custom error of a known type": ({"imitated": SECRET}, "imitated: "),
    "known error with a text": ({"known": SECRET}, "known: json_invalid"),
    "KeyError": ({"key_error": SECRET}, "raised KeyError"),
    "RuntimeError": ({"runtime": SECRET}, "raised RuntimeError"),
    "UnicodeError": ({"unicode": SECRET}, "unicode: value_error"),
    "several": (
        {"value": SECRET, "asserted": SECRET, "custom": SECRET, "on": SECRET, SECRET: 1},
        "(and 2 more)",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_read_names_the_process_and_quotes_nothing(shared_engine: AsyncEngine, name: str) -> None:
    stored, told = UNREADABLE[name]
    repository = PostgresProcessRepository(shared_engine, state_type=Impatient)
    process = process_with(Impatient())
    process.domain = name
    await repository.save(process)
    async with shared_engine.begin() as conn:
        await conn.execute(
            update(process_table).where(process_table.c.process_id == process.process_id).values(state=stored)
        )
    reads: list[Awaitable[object]] = [
        repository.get_by_id(name, process.process_id),
        repository.find_by_status(name, [process.status]),
    ]
    for read in reads:
        with pytest.raises(StoredStateError) as caught:
            await read
        assert (caught.value.process_id, caught.value.state_type) == (process.process_id, "Impatient")
        assert told in caught.value.reason
        check_quotes_nothing(caught.value)


async def test_json_that_cannot_be_read_quotes_nothing(administrator: AsyncEngine) -> None:
    repository = PostgresProcessRepository(administrator)
    process = new_process()
    await repository.save(process)
    entry = ProcessAuditEntry(step_name="s", command_id=uuid4(), command_type="T", command_data={})
    await repository.log_step(DOMAIN, process.process_id, entry)
    too_deep: Any = SECRET
    for _ in range(300):
        too_deep = {SECRET: too_deep}
    for stored in (too_deep, [SECRET]):
        async with administrator.begin() as conn:
            await conn.execute(update(process_table).values(state=stored))
            await conn.execute(update(process_audit).values(command_data=stored))
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: repository.get_by_id(DOMAIN, process.process_id),
            lambda: repository.get_audit_trail(DOMAIN, process.process_id),
        ]
        for call in calls:
            with pytest.raises(StoredDataError) as caught:
                await call()
            assert "nested too deeply" in str(caught.value) or "Input should be a" in str(caught.value)
            check_quotes_nothing(caught.value)
