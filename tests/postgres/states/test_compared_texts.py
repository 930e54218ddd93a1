"""What is stored is compared, not what Python calls equal: a state either comes back as it was, or it is refused."""

import itertools
import json
import os
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    JsonValue,
    PlainSerializer,
    RootModel,
    SecretStr,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from typing_extensions import TypedDict

from commandbus_process import InvalidInputError, PostgresProcessRepository, ProcessAuditEntry, ReplyOutcome
from commandbus_process._json import json_object_text
from commandbus_process._states import States
from tests.conftest import DOMAIN, new_process
from tests.postgres.states.test_state import process_with
from tests.support.databases import async_url

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(scope="module")
async def shared_engine(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


def repository_for(engine: AsyncEngine, state: object) -> PostgresProcessRepository[Any]:
    own_class: object = type(state)
    return PostgresProcessRepository(engine, state_type=own_class)


def written(state: object, state_type: object = None) -> str:
    codec: States[Any] = States(state_type or type(state))
    return codec.write(process_with(state))


class SameId(BaseModel):
    key: int
    token: SecretStr = SecretStr("")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameId) and self.key == other.key

    def __hash__(self) -> int:
        return self.key


@dataclass
class Uncompared:
    key: int
    token: SecretStr = field(default=SecretStr(""), compare=False)


@dataclass(frozen=True)
class Element:
    key: int
    value: Any = field(default=None, compare=False)


class AlwaysEqual(BaseModel):
    value: Any = None

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class OfAny(BaseModel):
    model_config = ConfigDict(extra="allow")
    value: Any = None


class Deep(BaseModel):
    inner: list[dict[str, tuple[SameId, int]]]


Rounded = Annotated[Decimal, PlainSerializer(lambda value: str(round(value, 2)))]
Lowered = Annotated[str, PlainSerializer(str.lower)]


class Typed(BaseModel):
    number: float = 0.0
    numbers: list[float] = []
    whole: int = 0
    at: datetime | None = None
    clock: time | None = None
    rounded: Rounded = Decimal(0)
    lowered: Lowered = ""
    ordered: OrderedDict[str, int] | None = None
    elements: set[Element] = set()
    either: int | float = 0
    loose: JsonValue = None
    pair: tuple[int, str] = (0, "")


def typed(**changes: object) -> Typed:
    """Assigned, as a process manager does, and so not checked."""
    state = Typed()
    for name, value in changes.items():
        setattr(state, name, value)
    return state


CHANGED: dict[str, tuple[object, str]] = {
    "secret behind an equality by id": (SameId(key=1, token=SecretStr("hunter2")), "state.token"),
    "secret in a field that is not compared": (Uncompared(1, SecretStr("hunter2")), "state.token"),
    "the same deep inside": (
        Deep(inner=[{"a": (SameId(key=1, token=SecretStr("hunter2")), 1)}]),
        "state.inner.0.*.0.token",
    ),
    "field that is not compared, in a set": (
        typed(elements={Element(1), Element(2, NOON := date(2026, 3, 1))}),
        "state.elements.*.value",
    ),
    "date behind an equality that is always true": (AlwaysEqual(value=NOON), "state.value"),
    "True for an int": (typed(whole=True), "state.whole"),
    "int for a float": (typed(number=1), "state.number"),
    "time whose zone is lost": (typed(clock=time(12, tzinfo=BERLIN)), "state.clock"),
    "time whose offset has seconds": (typed(clock=time(12, tzinfo=timezone(timedelta(seconds=7203)))), "state.clock"),
    "datetime whose offset has seconds": (typed(at=datetime(1890, 1, 1, tzinfo=BERLIN)), "state.at"),
    "serialiser that rounds": (typed(rounded=Decimal("1.005")), "state.rounded"),
    "serialiser that lowers": (typed(lowered="Hunter2"), "state.lowered"),
    "OrderedDict": (typed(ordered=OrderedDict[str, int](b=1, aa=2)), "state.ordered"),
    "large float in a union with int": (typed(either=1e16), "state.either"),
    "large float in JSON": (typed(loose={"a": [1e23]}), "state.loose.*.0"),
    "large float in Any": (OfAny(value=-1.5e300), "state.value"),
    "large float in an extra field": (OfAny.model_validate({"hunter2": 1e16}), "state.*"),
    "Enum in Any": (OfAny(value=ReplyOutcome.SUCCESS), "state.value"),
    "UUID as a key in Any": (OfAny(value={uuid4(): 1}), "state.value"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_would_change_is_refused_with_its_field(name: str) -> None:
    state, at = CHANGED[name]
    with pytest.raises(InvalidInputError) as caught:
        written(state)
    assert caught.value.field == at
    assert "unter2" not in str(caught.value)


class Colour(Enum):
    RED = "red"


class Identity:
    """Equals nothing but itself: there is only its text to go by."""

    def __init__(self, name: str) -> None:
        self.name = name


def as_identity(value: Any) -> Any:
    return Identity(value) if isinstance(value, str) else value


class Frozen(BaseModel, frozen=True):
    key: int


class Kept(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")
    at: datetime | None = None
    clock: time | None = None
    number: float = 0.0
    numbers: list[float] = []
    colour: Colour = Colour.RED
    by_number: dict[int, str] = {}
    ats: set[datetime] = set()
    line: deque[int] = deque()
    models: frozenset[Frozen] = frozenset()
    who: Annotated[Any, AfterValidator(as_identity), PlainSerializer(lambda value: getattr(value, "name", value))] = (
        None
    )


KEPT: list[object] = [
    Kept(at=datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)),
    Kept(at=datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)),
    Kept(at=datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)),
    Kept(at=datetime(2026, 3, 1)),  # noqa: DTZ001 - one without a zone comes back without
    Kept(ats={datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime(2026, 3, 1, tzinfo=UTC)}),
    Kept(clock=time(12, tzinfo=timezone(timedelta(hours=2)))),
    Kept(number=1e23, numbers=[1e16, -1.7976931348623157e308, 5e-324, 0.1]),
    Kept.model_validate({"said": '1e+16, "NaN", [1e+23]', "1e+16": "Infinity", "also": [10**30, 9e15]}),
    Kept(by_number={1: "a", 20: "b", 3: "c"}, line=deque([1, 2]), models=frozenset({Frozen(key=1), Frozen(key=2)})),
    SameId(key=1, token=SecretStr("**********")),
    AlwaysEqual(value={"a": [1, None, "x"]}),
    RootModel[float](1e23),
    RootModel[list[float]]([1e23]),
]


@pytest.mark.parametrize("state", KEPT, ids=repr)
async def test_what_python_calls_different_but_is_kept(shared_engine: AsyncEngine, state: Any) -> None:
    repository = repository_for(shared_engine, state)
    process = process_with(state)
    await repository.save(process)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert type(found.state) is type(state)
    assert found.state.model_dump(mode="json") == state.model_dump(mode="json")
    await repository.update(found)


def test_what_only_its_text_can_tell() -> None:
    assert '"who":"me"' in written(Kept(who="me"))


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    number: float = 0.0
    loose: Any = None


class Texts(Constants):
    model_config = ConfigDict(ser_json_inf_nan="strings")


class Nulls(BaseModel):
    number: float | None = 0.0


@pytest.mark.parametrize(
    "state",
    [
        *(each(number=bad) for each in (Constants, Nulls) for bad in (float("inf"), float("-inf"), float("nan"))),
        Constants(loose=[float("nan")]),
        Texts(loose=float("inf")),
        RootModel[float](float("inf")),
    ],
    ids=repr,
)
async def test_infinity_is_refused_however_a_model_is_configured(shared_engine: AsyncEngine, state: Any) -> None:
    repository = repository_for(shared_engine, state)
    async with shared_engine.begin() as conn:
        with pytest.raises(InvalidInputError):
            await repository.save(process_with(state), conn)
        assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1  # the transaction is alive


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
async def test_infinity_that_a_model_writes_as_text_comes_back(shared_engine: AsyncEngine, number: float) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(shared_engine, state_type=Texts)
    process = process_with(Texts(number=number))
    await repository.save(process)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert str(found.state.number) == str(number)


@pytest.mark.parametrize("number", [1e16, -1e16, 1.5e17, 1e23, 1.7976931348623157e308])
async def test_a_float_that_jsonb_makes_an_integer_is_refused_where_no_type_restores_it(
    shared_engine: AsyncEngine, number: float
) -> None:
    async with shared_engine.connect() as conn:
        stored = (await conn.execute(text(f"SELECT jsonb_build_array('{number!r}'::jsonb)"))).scalar_one()
    assert isinstance(stored[0], int)
    repository = PostgresProcessRepository(shared_engine)
    process = new_process()
    process.state["total"] = [number]
    with pytest.raises(InvalidInputError, match=r"state: has a float of 1e16 or more.*integer or a string"):
        await repository.save(process)
    entry = ProcessAuditEntry(step_name="s", command_id=uuid4(), command_type="T", command_data={"n": number})
    with pytest.raises(InvalidInputError, match=r"entry.command_data: has a float of 1e16"):
        await repository.log_step(DOMAIN, process.process_id, entry)
    reply = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "reply_data": {"n": number}})
    with pytest.raises(InvalidInputError, match="reply_data: has a float of 1e16"):
        await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply)


def test_texts_that_look_like_numbers_are_left_alone() -> None:
    value = {"a": "x,1e+16]", "1e+17": 'quoted \\" [1e+18', "NaN": "Infinity", "b": [1e15, 1e-300, "\\"]}
    assert json.loads(json_object_text(value, "state")) == value


SETS = """
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict
from commandbus_process import ProcessMetadata
from commandbus_process._states import States

class Key(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str

class Inner(BaseModel):
    names: set[str]

@dataclass
class Plain:
    names: frozenset[str]
    inner: "list[Inner]"

class Typed(TypedDict):
    names: set[frozenset[str]]

class Recursive(BaseModel):
    names: set[str]
    children: "dict[str, Recursive]" = {}

class Everything(BaseModel):
    keys: set[Key]
    plain: Plain
    typed: Typed
    recursive: Recursive
    maybe: tuple[set[str] | None, int]
    either: set[int] | set[str]

class Other(BaseModel):
    other: set[str]

words = "the elements of a set come in the order of their hashes".split()
state = Everything(
    keys={Key(name=word) for word in words},
    plain=Plain(frozenset(words), [Inner(names=set(words))]),
    typed={"names": {frozenset(words), frozenset(words[:4]), frozenset(words[4:])}},
    recursive=Recursive(names=set(words), children={"one": Recursive(names=set(words))}),
    maybe=(set(words), 1),
    either=set(words),
)
for declared in (Everything, Everything | Other):
    process = ProcessMetadata[Everything](domain="d", process_id=UUID(int=1), process_type="t", state=state)
    print(States(declared).write(process))
"""


def test_sets_are_written_in_one_order_whatever_the_hash_seed() -> None:
    texts = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (0, 1, 2, 3)
    }
    [one] = texts
    first, second = one.splitlines()
    assert first == second
    assert json.loads(first)["plain"]["names"] == [
        *("a", "come", "elements", "hashes", "in", "of", "order", "set", "the", "their")
    ]


def test_types_without_sets_keep_pydantics_own_writer() -> None:
    from commandbus_process._state_types import Declared, writer  # noqa: PLC0415 - only this test is about it

    [adapter] = Declared(Deep, "state_type").adapters()
    assert writer(adapter) == adapter.dump_json


class Long(BaseModel):
    said: str


def test_a_text_that_jsonb_cannot_hold_is_refused() -> None:
    """One byte more than it has 28 bits for; in characters it is a third of that."""
    too_long = "€" * (268_435_455 // 3)
    calls: list[Callable[[], str]] = [
        lambda: written(Long.model_construct(said=too_long)),
        lambda: json_object_text({"said": too_long}, "state"),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match=r"state: is too long: \d+ bytes of JSON") as caught:
            call()
        assert "€" not in str(caught.value)


NUMBERS = itertools.count()


def numbered(value: int) -> int:
    return value + next(NUMBERS)


class Unsteady(BaseModel):
    value: Annotated[int, PlainSerializer(numbered)]


def test_a_state_that_is_written_differently_each_time_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        written(Unsteady(value=1))


class Times(TypedDict):
    at: datetime


def test_keys_that_a_typed_dict_declares_are_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        written({"at": datetime(1890, 1, 1, tzinfo=BERLIN)}, Times)
    assert caught.value.field == "state.at"
