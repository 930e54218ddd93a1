"""What is stored is compared, not what Python calls equal: a state either comes back as it was, or it is refused."""

import itertools
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    PlainSerializer,
    SecretStr,
)
from typing_extensions import TypedDict

from commandbus_process import InvalidInputError, ReplyOutcome
from commandbus_process._json import json_object_text
from commandbus_process._states import States
from tests.support.compared_texts import BERLIN, AlwaysEqual, Kept, SameId
from tests.support.states import process_with

if TYPE_CHECKING:
    from collections.abc import Callable


def written(state: object, state_type: object = None) -> str:
    codec: States[Any] = States(state_type or type(state))
    return codec.write(process_with(state))


@dataclass
class Uncompared:
    key: int
    token: SecretStr = field(default=SecretStr(""), compare=False)


@dataclass(frozen=True)
class Element:
    key: int
    value: Any = field(default=None, compare=False)


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


def test_a_value_that_only_the_written_text_shows() -> None:
    assert '"who":"me"' in written(Kept(who="me"))


def test_texts_that_look_like_numbers_are_left_alone() -> None:
    value = {"a": "x,1e+16]", "1e+17": 'quoted \\" [1e+18', "NaN": "Infinity", "b": [1e15, 1e-300, "\\"]}
    assert json.loads(json_object_text(value, "state")) == value


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
