"""Errors quote no state and no payload: not a tag, not a key, not the text of a validator or of a serialiser."""

import traceback
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
    PlainSerializer,
    SecretStr,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError, PydanticKnownError
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessRepositoryError,
    StoredDataError,
    StoredStateError,
)
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process
from tests.support.states import process_with

SECRET = "hunter2"  # noqa: S105 - what must not be quoted


@pytest.fixture(scope="module")
async def shared_engine(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


def check_quotes_nothing(error: BaseException) -> None:
    printed = "".join(traceback.format_exception(error))
    # The lines of source code that a traceback shows are the test's own.
    told = [line for line in printed.splitlines() if not line.startswith("    ")]
    for words in (str(error), repr(error), "\n".join(told), *map(str, vars(error).values())):
        assert SECRET not in words


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


def refuse_to_write(error: Exception) -> Any:
    def write(value: str) -> str:
        if value == SECRET:
            raise error
        return value

    return PlainSerializer(write)


class Unwritable(BaseModel):
    number: int = 0
    value: Annotated[str, refuse_to_write(ValueError(SECRET))] = ""
    error: Annotated[str, refuse_to_write(RuntimeError(SECRET))] = ""
    token: SecretStr = SecretStr("")
    numbers: list[int] = []


class Whole(BaseModel):
    value: str

    @model_serializer
    def write(self) -> dict[str, Any]:
        raise LookupError(self.value)


class ReadsDifferently(BaseModel):
    value: str
    how: str = "read"

    @model_validator(mode="before")
    @classmethod
    def look(cls, data: Any) -> Any:
        if "how" in data:
            raise AttributeError(SECRET)
        return data


class Assigned(BaseModel):
    value: str

    @field_validator("value")
    @classmethod
    def look_up(cls, value: str) -> str:
        return {"known": value}[value]


@dataclass
class Positive:
    amount: int = Field(default=1, gt=0)


def changed(state: Any, **changes: object) -> Any:
    for name, value in changes.items():
        setattr(state, name, value)
    return state


UNWRITABLE: dict[str, tuple[Any, str]] = {
    "another type": (
        changed(Unwritable(), number=SECRET),
        "as Unwritable: look at number, which is str",
    ),
    "another type in a list": (changed(Unwritable(), numbers=[1, SECRET]), "look at numbers, which is list"),
    "serialiser": (Unwritable(value=SECRET), "cannot be written as Unwritable: look at value, which is str"),
    "serialiser's RuntimeError": (Unwritable(error=SECRET), "look at error, which is str"),
    "serialiser of a whole model": (Whole(value=SECRET), "cannot be written as Whole"),
    "secret": (Unwritable(token=SecretStr(SECRET)), "would come back as another value"),
    "lone surrogate": (Unwritable(value=f"{SECRET}\ud800"), "contains a lone surrogate"),
    "validator that refuses what was written": (
        ReadsDifferently(value=SECRET),
        "read back as ReadsDifferently: raised Attr",
    ),
    "KeyError of a validator": (
        changed(Assigned(value="known"), value=SECRET),
        "could not be read back as Assigned: raised KeyE",
    ),
    "constraint of a dataclass": (
        changed(Positive(), amount=-1),
        "read back as Positive: amount: Input should be greater than 0",
    ),
    "class that is not declared": (SecretStr(SECRET), "is a SecretStr, not "),
}


@pytest.mark.parametrize("name", UNWRITABLE)
async def test_what_cannot_be_written_is_refused_and_quotes_nothing(name: str) -> None:
    state, told = UNWRITABLE[name]
    declared: object = Unwritable if isinstance(state, SecretStr) else state.__class__
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(engine, state_type=declared)
    for write in (repository.save, repository.update):
        with pytest.raises(InvalidInputError) as caught:
            await write(process_with(state))
        assert told in caught.value.reason
        check_quotes_nothing(caught.value)


class Shouting:
    """Equals nothing, and shouts about it."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError(SECRET)

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({SECRET: {SECRET: [1, float("nan")]}}, "*.*.1: Input should be a finite number"),
        ({SECRET: {1: 2}}, "Input should be a valid string"),
        ({SECRET: {4111: 2}}, "*.*: Input should be a valid string"),
        ({SECRET: Shouting()}, "*: invalid-json-value"),
        ({"a": (SECRET,)}, "*: invalid-json-value"),
        ({SECRET: f"{SECRET}\ud800"}, "lone surrogate"),
        ({SECRET: f"{SECRET}\0"}, "NUL"),
        ({SECRET: 1e16}, "a float of 1e16"),
        ({SECRET: 10**5000}, "cannot be written as JSON (ValueError)"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_json_that_cannot_be_stored_quotes_nothing(value: dict[Any, Any], told: str) -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    repository = PostgresProcessRepository(engine)
    process = new_process()
    process.state.update(value)
    entry = ProcessAuditEntry(step_name="s", command_id=uuid4(), command_type="T", command_data={})
    assert entry.command_data is not None
    entry.command_data.update(value)
    for call in (repository.save(process), repository.log_step(DOMAIN, process.process_id, entry)):
        with pytest.raises(InvalidInputError) as caught:
            await call
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
            assert "nests too deep" in str(caught.value) or "Input should be a" in str(caught.value)
            check_quotes_nothing(caught.value)


async def test_an_argument_that_is_refused_quotes_nothing() -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    process = new_process().model_copy(update={"error_message": f"{SECRET}\0"})
    with pytest.raises(ProcessRepositoryError, match="error_message: must not contain a NUL character") as caught:
        await repository.save(process)
    check_quotes_nothing(caught.value)
