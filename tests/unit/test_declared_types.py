"""A state has the class that was declared, and no other: not a subclass that somebody happened to import."""

import gc
import weakref
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, cast
from uuid import uuid4

import pytest
from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import InvalidInputError, JsonObject, PostgresProcessRepository
from commandbus_process._states import States
from tests.support.declared_types import Booking, Order, Parcel
from tests.support.states import process_with


class Invoice(BaseModel):
    order_no: str
    total: int = 0


class LongBooking(Booking):
    nights: int


def codec(state_type: object) -> States[Any]:
    return States(state_type)


@pytest.mark.parametrize(
    "declared",
    [
        Order | Invoice,
        Invoice | Order,
        Annotated[Order | Invoice, Field(union_mode="left_to_right")],
        Parcel | Order | Invoice,
    ],
    ids=str,
)
@pytest.mark.parametrize("state", [Order(order_no="7"), Invoice(order_no="7")], ids=str)
def test_members_that_cannot_be_distinguished_are_refused_in_any_order(declared: object, state: object) -> None:
    other = "Invoice" if isinstance(state, Order) else "Order"
    with pytest.raises(InvalidInputError, match=f"is {type(state).__name__} but could come back as {other}"):
        codec(declared).write(process_with(state))


class Named(BaseModel):
    kind: Literal["named"] = "named"
    name: str


class Renamed(BaseModel):
    kind: Literal["renamed"] = "renamed"
    name: str


def kind_of(value: Any) -> str:
    kind: object = cast("dict[str, object]", value)["kind"] if isinstance(value, dict) else value.kind
    return str(kind)


@pytest.mark.parametrize(
    "declared",
    [
        Named | Renamed,
        Annotated[Named | Renamed, Field(discriminator="kind")],
        Annotated[Annotated[Named, Tag("named")] | Annotated[Renamed, Tag("renamed")], Discriminator(kind_of)],
    ],
    ids=["tried", "discriminator", "callable"],
)
def test_a_field_that_names_its_class_distinguishes_members(declared: object) -> None:
    for state in (Named(name="a"), Renamed(name="b")):
        assert f'"kind":"{state.kind}"' in codec(declared).write(process_with(state))


def test_what_a_union_of_a_model_and_a_dict_makes_of_each() -> None:
    for declared in (Order | JsonObject, dict[str, JsonValue] | Order):
        for state in (Order(order_no="7"), {"another": 1}):
            codec(declared).write(process_with(state))
        with pytest.raises(InvalidInputError, match="is dict but could come back as Order"):
            codec(declared).write(process_with({"order_no": "7"}))


def test_a_subclass_that_is_half_defined_or_cannot_be_built_disturbs_nobody() -> None:
    class Base(BaseModel):
        a: int

    codec_of_base = codec(Base)

    class HalfDefined(Base):
        later: "NotDefinedAnywhere"  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    class Opaque(Base):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        handle: object = Field(default_factory=object)

    assert codec_of_base.write(process_with(Base(a=1))) == '{"a":1}'
    assert codec(Base).write(process_with(Base(a=1))) == '{"a":1}'
    undeclared: Any
    for undeclared in (HalfDefined, Opaque):
        with pytest.raises(InvalidInputError, match=f"declare state_type=Base | {undeclared.__name__}"):
            codec_of_base.write(process_with(undeclared.model_construct(a=1)))


def test_classes_that_are_no_longer_used_are_freed() -> None:
    states = codec(Order)

    def refused_class(number: int) -> "weakref.ref[type]":
        made: Any = type(f"Order{number}", (Order,), {"__module__": __name__})
        with pytest.raises(InvalidInputError, match="is not declared"):
            states.write(process_with(made(order_no="7")))
        return weakref.ref(made)

    references = [refused_class(number) for number in range(20)]
    gc.collect()
    assert [each for each in references if each() is not None] == []


class Abstract(BaseModel, ABC):
    @abstractmethod
    def act(self) -> None: ...


class NotAType(BaseModel):
    text: str = "hunter2"


UNREACHABLE = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (int, "not the class int"),
        (str, "not the class str"),
        (list, "not the class list"),
        (list[int], "not the class list"),
        (object, "not the class object"),
        (BaseModel, "not the class BaseModel"),
        (Any, "not the class Any"),
        (JsonValue, "not the class list"),
        (type(None), "not None"),
        (Order | int, "not the class int"),
        (Annotated[int, "count"], "not the class int"),
        ("Order", "not a value of type str"),
        (NotAType(), "not a value of type NotAType"),
        (Parcel(weight=1), "not a value of type Parcel"),
        ([Order], "not a value of type list"),
        (7, "not a value of type int"),
        (Abstract, "Abstract is abstract; declare the classes that states have"),
        ({"order": int}, "state_type['order'] must be a Pydantic model"),
        ({"order": Order(order_no="7")}, "state_type['order'] must be"),
        ({"order": None}, "not None"),
        ({Order: Order}, "must be process types (str), not"),
    ],
    ids=str,
)
async def test_what_is_no_type_of_state_is_refused_by_the_constructor(wrong: object, told: str) -> None:
    engine = create_async_engine(UNREACHABLE)
    with pytest.raises(TypeError) as caught:
        PostgresProcessRepository(engine, state_type=wrong)
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_process_types_of_a_mapping() -> None:
    assert codec({"order": Order, "parcel": Parcel}).process_types == frozenset({"order", "parcel"})
    assert codec(Order).process_types is None
    assert codec(None).process_types is None


def test_what_is_checked_once_more_is_read_as_the_same_class() -> None:
    process = process_with(LongBooking(room=7, nights=2), str(uuid4()))
    states = codec(Booking | LongBooking)
    assert states.find_type(process.process_type).read_checked(states.write(process)) == process.state
