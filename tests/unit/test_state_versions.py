"""What `StateVersions` accepts, how states are converted, and what is said if a converter fails."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from commandbus_process import InvalidInputError, JsonObject, ProcessMetadata, RawStates, StateVersions
from commandbus_process._states import States, StateType
from tests.support.states import NOON, process_with


def named(value: object) -> str:
    """The value without the addresses of functions: every worker of pytest-xdist must find the same names."""
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(value))


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    first: str
    last: str
    amount: float


class Booking(TypedDict):
    room: int


def split(state: JsonObject) -> JsonObject:
    """1 to 2."""
    first, _, last = str(state.pop("name")).partition(" ")
    return {**state, "first": first, "last": last}


def rename(state: JsonObject) -> JsonObject:
    """2 to 3."""
    return {**{key: value for key, value in state.items() if key != "total"}, "amount": state["total"]}


def undo_rename(state: JsonObject) -> JsonObject:
    """3 to 2."""
    return {**{key: value for key, value in state.items() if key != "amount"}, "total": state["amount"]}


def undo_split(state: JsonObject) -> JsonObject:
    """2 to 1."""
    name = f"{state.pop('first')} {state.pop('last')}"
    return {**state, "name": name}


def same(state: JsonObject) -> JsonObject:
    return state


UP: dict[int, Any] = {1: split, 2: rename}
DOWN: dict[int, Any] = {2: undo_split, 3: undo_rename}


def versions(**changes: Any) -> StateVersions[Order]:
    given: dict[str, Any] = {"version": 3, "upcasters": UP, "downcasters": DOWN, **changes}
    return StateVersions(Order, **given)


def state_type(declared: object) -> StateType:
    return States[Any](declared).find_type("order")


def read(declared: object, text: str, version: int | None) -> object:
    of_type = state_type(declared)
    return of_type.read(of_type.current(text, version))


ADA = Order(first="Ada", last="Lovelace", amount=42)


@pytest.mark.parametrize(
    ("stored", "version"),
    [
        ('{"name": "Ada Lovelace", "total": 42.0}', None),
        ('{"name": "Ada Lovelace", "total": 42.0}', 1),
        ('{"first": "Ada", "last": "Lovelace", "total": 42.0}', 2),
        ('{"first": "Ada", "last": "Lovelace", "amount": 42.0}', 3),
    ],
)
def test_each_version_is_read_as_the_current_one(stored: str, version: int | None) -> None:
    assert read(versions(), stored, version) == ADA


@pytest.mark.parametrize(
    ("write_version", "column", "stored"),
    [
        (1, None, {"name": "Ada Lovelace", "total": 42.0}),
        (2, 2, {"first": "Ada", "last": "Lovelace", "total": 42.0}),
        (3, 3, {"first": "Ada", "last": "Lovelace", "amount": 42.0}),
    ],
)
def test_a_state_is_written_in_the_wanted_version(write_version: int, column: int | None, stored: JsonObject) -> None:
    columns = States[Order](versions(write_version=write_version)).columns(process_with(ADA))
    text = columns.pop("state")
    assert columns == {"state_version": column}
    assert States[Any](RawStates()).find_type("order").read(text) == stored


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": 0}, "version"),
        ({"version": 2**31}, "version"),
        ({"version": 4}, "upcasters"),
        ({"upcasters": {1: split}}, "upcasters"),
        ({"version": 4, "upcasters": {1: split, 3: same}, "downcasters": {}}, "upcasters"),
        ({"version": 2}, "upcasters[2]"),
        ({"upcasters": {0: same, **UP}}, "a key of upcasters"),
        ({"downcasters": {1: same, **DOWN}}, "downcasters[1]"),
        ({"downcasters": {2: undo_split}}, "downcasters"),
        ({"downcasters": {5: same}}, "downcasters"),
        ({"write_version": 0}, "write_version"),
        ({"write_version": 4}, "write_version"),
        ({"write_version": 1, "downcasters": {3: undo_rename}}, "downcasters"),
        ({"write_version": 1, "upcasters": {2: rename}}, "write_version"),
    ],
    ids=named,
)
def test_a_gap_in_a_chain_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        versions(**changes)
    assert caught.value.field == field


async def asynchronous(state: JsonObject) -> JsonObject:
    return state


def generator(state: JsonObject) -> Iterator[JsonObject]:
    yield state


async def asynchronous_generator(state: JsonObject) -> AsyncIterator[JsonObject]:
    yield state


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "3"},
        {"version": True},
        {"version": 3.0},
        {"write_version": "3"},
        {"upcasters": [split, rename]},
        {"upcasters": {"1": split, 2: rename}},
        {"upcasters": {1: None, 2: rename}},
        {"upcasters": {1: asynchronous, 2: rename}},
        {"upcasters": {1: asynchronous_generator, 2: rename}},
        {"upcasters": {1: generator, 2: rename}},
        {"downcasters": {3: "undo"}},
    ],
    ids=named,
)
def test_what_is_no_version_or_no_function_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as caught:
        versions(**changes)
    assert next(iter(changes)) in str(caught.value)


def test_a_converter_may_be_any_callable_that_returns_the_object() -> None:
    def with_title(title: str, state: JsonObject) -> JsonObject:
        return {**state, "last": f"{title} {state['last']}"}

    declared = StateVersions(Order, version=2, upcasters={1: partial(with_title, "Countess")})
    assert read(declared, '{"first": "Ada", "last": "Lovelace", "amount": 1.0}', 1) == ADA.model_copy(
        update={"last": "Countess Lovelace", "amount": 1.0}
    )


def test_the_type_is_checked_as_without_versions() -> None:
    for wrong in (int, None, "Order", versions(), [Order]):
        with pytest.raises(TypeError):
            States[Any](StateVersions[Any](wrong, version=1))
    with pytest.raises(TypeError, match=r"state_type\['order'\]"):
        States[Any]({"order": StateVersions(int, version=1)})


def test_a_dictionary_of_the_host_is_not_used_any_more() -> None:
    upcasters = dict(UP)
    declared = versions(upcasters=upcasters)
    upcasters.clear()
    assert read(declared, '{"name": "Ada Lovelace", "total": 42.0}', 1) == ADA


def test_the_first_upcasters_can_go() -> None:
    declared = versions(upcasters={2: rename}, downcasters={})
    assert (declared.oldest, declared.newest) == (2, 3)
    assert read(declared, '{"first": "Ada", "last": "Lovelace", "total": 42.0}', 2) == ADA
    of_type = state_type(declared)
    with pytest.raises(ValueError, match="at version 1") as caught:
        of_type.current('{"name": "secret"}', None)
    assert of_type.explain(caught.value) == "it is at version 1, and this program reads the versions 2 to 3"


def test_a_newer_version_is_read_through_downcasters_if_there_are_some() -> None:
    assert versions(version=2, upcasters={1: split}, downcasters={3: undo_rename}).newest == 3
    assert versions(version=2, upcasters={1: split}, downcasters={}).newest == 2
    booking = StateVersions[Any](Booking, version=1, downcasters={2: lambda state: {"room": state["rooms"][0]}})
    assert read(booking, '{"rooms": [7, 8]}', 2) == {"room": 7}


def raises(_: JsonObject) -> JsonObject:
    raise ValueError("the secret is swordfish")


BAD_CONVERTERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (raises, "raised ValueError"),
    "misses a key": (lambda state: state["swordfish"], "raised KeyError"),
    "returns nothing": (lambda _: None, "it is of type NoneType"),
    "returns a list": (lambda state: [state], "it is of type list"),
    "returns a text": (str, "it is of type str"),
    "returns a model": (lambda _: ADA, "it is of type Order"),
    "has a time": (lambda _: {"swordfish": NOON}, "*: "),
    "has a tuple": (lambda _: {"swordfish": (1, 2)}, "*: "),
    "has a set": (lambda _: {"swordfish": {1}}, "*: "),
    "has bytes": (lambda _: {"swordfish": b"a"}, "*: "),
    "has a key that is no text": (lambda _: {1: "swordfish"}, "*: Input should be a valid string"),
    "has NaN": (lambda _: {"swordfish": float("nan")}, "*: "),
    "has a surrogate": (lambda _: {"swordfish": "\ud800"}, "surrogate"),
}


@pytest.mark.parametrize("name", BAD_CONVERTERS)
def test_what_a_failing_converter_says_quotes_nothing(name: str) -> None:
    converter, told = BAD_CONVERTERS[name]
    reading = state_type(StateVersions(Order, version=2, upcasters={1: converter}))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - explain takes any
        reading.current('{"name": "swordfish", "total": 1}', 1)
    reason = reading.explain(caught.value)
    assert told in reason
    assert "swordfish" not in reason

    writing = StateVersions(Order, version=2, upcasters={1: same}, downcasters={2: converter}, write_version=1)
    with pytest.raises(InvalidInputError) as refused:
        States[Order](writing).columns(process_with(Order(first="swordfish", last="b", amount=1)))
    assert refused.value.field == "state"
    assert told in refused.value.reason
    assert "cannot be written as version 1" in refused.value.reason
    assert "swordfish" not in str(refused.value)


def test_a_state_that_is_no_object_does_not_reach_a_converter() -> None:
    of_type = state_type(StateVersions(Order, version=2, upcasters={1: raises}))
    with pytest.raises(ValueError, match=r"dictionary|object") as caught:
        of_type.current('["swordfish"]', 1)
    assert "swordfish" not in of_type.explain(caught.value)


def test_what_the_older_version_cannot_hold_is_refused() -> None:
    states = States[Order](versions(write_version=1))
    states.columns(process_with(ADA))
    ambiguous = ADA.model_copy(update={"first": "Augusta Ada"})
    with pytest.raises(InvalidInputError) as caught:
        states.columns(process_with(ambiguous))
    assert caught.value.field == "state.first"
    assert caught.value.reason.startswith("cannot be written as version 1, because it would come back as another value")
    assert "Augusta" not in str(caught.value)
    States[Order](versions()).columns(process_with(ambiguous))  # in its own version it can be written


def test_what_the_upcaster_cannot_read_again_is_refused() -> None:
    declared = StateVersions(
        Order, version=2, upcasters={1: raises}, downcasters={2: same}, write_version=1
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="the upcaster from version 1 raised ValueError"):
        States[Order](declared).columns(process_with(ADA))
    unreadable = StateVersions(
        Order, version=2, upcasters={1: lambda _: {"first": "swordfish"}}, downcasters={2: same}, write_version=1
    )
    with pytest.raises(InvalidInputError, match="could not be read back as Order: last: Field required") as caught:
        States[Order](unreadable).columns(process_with(ADA))
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize("number", [1e23, 1e16, 0.1, 5e-324, 1.7976931348623157e308, -0.5])
def test_a_float_survives_the_way_through_an_older_version(number: float) -> None:
    """`jsonb` gives 1e23 back as an integer, so the upcaster sees one."""
    states = States[Order](versions(write_version=2))
    states.columns(process_with(ADA.model_copy(update={"amount": number})))


def test_a_number_beyond_floats_is_an_error_and_no_infinity() -> None:
    of_type = state_type(versions())
    with pytest.raises(ValueError, match=r".") as caught:
        of_type.current(f'{{"name": "a b", "total": {"9" * 400}.5}}', 1)
    assert "999" not in of_type.explain(caught.value)


def test_nothing_but_json_objects_has_no_upcaster_to_run() -> None:
    """Without `StateVersions`, and with raw states, the text is what it was."""
    text = '{"a": 1}'
    assert state_type(None).current(text, None) is text
    assert state_type(Order).current(text, 1) is text
    assert state_type(RawStates()).current(text, 17) is text
    assert state_type(versions()).current(text, 3) is text


def test_a_process_that_matches_no_row_has_no_state_version() -> None:
    assert ProcessMetadata[Order].model_validate(vars(process_with(ADA))).state_version is None
