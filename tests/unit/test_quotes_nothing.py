"""Errors quote no state and no payload: not a tag, not a key, not the text of a validator or of a serialiser."""

from typing import Annotated, Any
from uuid import uuid4

import pytest
from pydantic import (
    BaseModel,
    Field,
    PlainSerializer,
    SecretStr,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessRepositoryError,
)
from tests.support.items import DOMAIN, new_process
from tests.support.quotes_nothing import SECRET, check_quotes_nothing
from tests.support.states import process_with


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


async def test_an_argument_that_is_refused_quotes_nothing() -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    process = new_process().model_copy(update={"error_message": f"{SECRET}\0"})
    with pytest.raises(ProcessRepositoryError, match="error_message: must not contain a NUL character") as caught:
        await repository.save(process)
    check_quotes_nothing(caught.value)
