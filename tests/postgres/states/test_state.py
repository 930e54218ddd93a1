"""Typed states: what was saved comes back as what it was, and what no longer fits is an error that names the row."""

from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
)
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import InvalidInputError, PostgresProcessRepository, ProcessMetadata, StoredStateError
from commandbus_process.tables import process as process_table
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process
from tests.support.states import (
    EXPRESS,
    NOON,
    ORDER,
    REFUND,
    Booking,
    CamelCase,
    ExpressOrderState,
    Item,
    OrderState,
    RefundState,
    Shipment,
    WithTotal,
    process_with,
)


@pytest.mark.parametrize(
    ("state_type", "state"),
    [
        (OrderState, ORDER),
        (OrderState | ExpressOrderState, ORDER),
        (OrderState | ExpressOrderState, EXPRESS),
        (ExpressOrderState, EXPRESS),
        (OrderState | RefundState, ORDER),
        (OrderState | RefundState | ExpressOrderState, EXPRESS),
        (OrderState | RefundState, REFUND),
        (Annotated[RefundState | CamelCase, Field(union_mode="left_to_right")], REFUND),
        (Shipment, Shipment(parcel=UUID(int=3), sent_on=NOON)),
        (Shipment | OrderState, Shipment(parcel=UUID(int=4))),
        (Booking, Booking(room=7, until=NOON)),
        (CamelCase, CamelCase(orderId=7)),
        (WithTotal, WithTotal(prices=[1, 2])),
    ],
    ids=str,
)
async def test_what_was_saved_comes_back_as_what_it_was(engine: AsyncEngine, state_type: object, state: object) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(engine, state_type=state_type)
    process = process_with(state)
    await repository.save(process)
    await repository.update(process)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert type(found.state) is type(state)
    assert found.state == state
    assert [each.state for each in await repository.find_by_status(DOMAIN, [process.status])] == [state]


async def test_a_type_for_each_process_type(engine: AsyncEngine) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(
        engine, state_type={"order": OrderState, "refund": RefundState}
    )
    order, refund = process_with(ORDER), process_with(REFUND, "refund")
    for process in (order, refund):
        await repository.save(process)
        found = await repository.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        assert found.state == process.state
    with pytest.raises(InvalidInputError, match="no state type is declared for 'shipment'"):
        await repository.save(process_with(REFUND, "shipment"))
    with pytest.raises(InvalidInputError, match="state"):
        await repository.save(process_with(REFUND, "order"))
    undeclared = PostgresProcessRepository(engine, state_type={"order": OrderState})
    with pytest.raises(StoredStateError, match="no state type is declared"):
        await undeclared.get_by_id(DOMAIN, refund.process_id)


def assign(name: str, value: object) -> Callable[[OrderState], None]:
    return lambda state: setattr(state, name, value)


@pytest.mark.parametrize(
    "change",
    [
        assign("placed_at", "yesterday"),
        assign("placed_at", None),
        assign("items", [{"sku": "no price"}]),
        assign("weight", float("nan")),
        assign("weight", "hunter2"),
        assign("items", [Item(sku="a\0b", price=Decimal(1))]),
        assign("items", [Item(sku="\ud800", price=Decimal(1))]),
    ],
)
async def test_what_is_put_in_place_into_a_typed_state_is_checked(
    engine: AsyncEngine, change: Callable[[OrderState], None]
) -> None:
    repository = PostgresProcessRepository(engine, state_type=OrderState)
    process = ProcessMetadata[OrderState](
        domain=DOMAIN, process_id=uuid4(), process_type="order", state=ORDER.model_copy(deep=True)
    )
    await repository.save(process)
    change(process.state)
    with pytest.raises(InvalidInputError) as caught:
        await repository.update(process)
    assert caught.value.field == "state"
    assert "hunter2" not in str(caught.value)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert (found.state, found.version) == (ORDER, 1)


@pytest.mark.parametrize("state", [REFUND, {"order_id": 1}, None, 7], ids=repr)
async def test_a_state_of_another_type_is_refused(engine: AsyncEngine, state: object) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(engine, state_type=OrderState)
    with pytest.raises(InvalidInputError) as caught:
        await repository.save(process_with(state))
    assert caught.value.field == "state"
    assert "0.10" not in str(caught.value)


async def test_a_stored_state_that_no_longer_fits(engine: AsyncEngine) -> None:
    repository = PostgresProcessRepository(engine, state_type=OrderState)
    fits, broken = (
        ProcessMetadata[OrderState](domain=DOMAIN, process_id=uuid4(), process_type="order", state=ORDER)
        for _ in range(2)
    )
    for process in (fits, broken):
        await repository.save(process)
    async with engine.begin() as connection:
        await connection.execute(
            update(process_table)
            .where(process_table.c.process_id == broken.process_id)
            .values(state={"order_id": "hunter2", "placed_at": "2026-03-01T12:00:00Z"})
        )
    for read in (
        repository.get_by_id(DOMAIN, broken.process_id),
        repository.find_by_status(DOMAIN, [broken.status]),
    ):
        with pytest.raises(StoredStateError, match="order_id: uuid_parsing") as caught:
            await read
        error = caught.value
        assert (error.domain, error.process_id) == (DOMAIN, broken.process_id)
        assert (error.process_type, error.state_type) == ("order", "OrderState")
        assert error.reason in str(error)
        assert "hunter2" not in str(error)
        assert isinstance(error.__context__, ValidationError)
        assert error.__suppress_context__


@pytest.mark.parametrize("stored", [[1], "text", 7, None], ids=repr)
async def test_a_stored_state_that_is_no_object(engine: AsyncEngine, stored: object) -> None:
    repository = PostgresProcessRepository(engine)
    process = new_process()
    await repository.save(process)
    async with engine.begin() as connection:
        # JSONB.NULL and not NULL, which the column does not take.
        await connection.execute(update(process_table).values(state=JSONB.NULL if stored is None else stored))
    with pytest.raises(StoredStateError):
        await repository.get_by_id(DOMAIN, process.process_id)


async def test_the_engines_own_json_is_not_used(database_url: str) -> None:
    def forbidden(_: object) -> Any:
        raise AssertionError("the engine's JSON was used")

    engine = create_async_engine(async_url(database_url), json_serializer=forbidden, json_deserializer=forbidden)
    repository = PostgresProcessRepository(engine)
    process = new_process()
    await repository.save(process)
    await repository.update(process)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process
    await engine.dispose()


async def test_the_json_that_is_stored(engine: AsyncEngine) -> None:
    repository = PostgresProcessRepository(engine, state_type=OrderState)
    state = OrderState(order_id=UUID(int=7), placed_at=NOON, items=[Item(sku="é", price=Decimal("12.50"))])
    await repository.save(process_with(state))
    async with engine.connect() as connection:
        stored = (await connection.execute(select(process_table.c.state))).scalar_one()
    assert stored == {
        "order_id": "00000000-0000-0000-0000-000000000007",
        "placed_at": "2026-03-01T12:00:00Z",
        "items": [{"sku": "é", "price": "12.50"}],
        "weight": 0,
    }


def test_a_parametrised_process_checks_its_state_from_the_start() -> None:
    with pytest.raises(ValidationError):
        ProcessMetadata[OrderState](
            domain=DOMAIN,
            process_id=uuid4(),
            process_type="order",
            state=REFUND,  # pyright: ignore[reportArgumentType]
        )
    process = ProcessMetadata[OrderState](domain=DOMAIN, process_id=uuid4(), process_type="order", state=ORDER)
    with pytest.raises(ValidationError):
        process.state = REFUND  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    assert process.state is ORDER


class Inner(BaseModel):
    a: int


class InnerSub(Inner):
    b: int


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    value: Any = None
    inner: Inner = Inner(a=1)
    inners: list[Inner] = []
    by_name: dict[str, Any] = {}
    token: SecretStr = SecretStr("")


class Swapped(BaseModel):
    model_config = ConfigDict(validate_by_name=True)
    a: int = Field(alias="b")
    b: int = Field(alias="a")


class Drifting(BaseModel):
    value: int

    @field_serializer("value")
    def one_more(self, value: int) -> int:
        return value + 1


LOST: dict[str, tuple[type[BaseModel], dict[str, Any], str]] = {
    "nested subclass": (Loose, {"inner": InnerSub(a=1, b=2)}, "state.inner"),
    "nested subclass in a list": (Loose, {"inners": [Inner(a=1), InnerSub(a=1, b=2)]}, "state.inners.1"),
    "secret": (Loose, {"token": SecretStr("hunter2")}, "state.token"),
    "NaN in Any": (Loose, {"value": float("nan")}, "state.value"),
    "datetime in Any": (Loose, {"value": NOON}, "state.value"),
    "tuple in Any": (Loose, {"value": (1, 2)}, "state.value"),
    "model in Any": (Loose, {"value": Inner(a=1)}, "state.value"),
    "key that is no string": (Loose, {"by_name": {"deep": {1: 2}}}, "state.by_name.*"),
    "extra field": (Loose, {"more": NOON}, "state.*"),
    "serializer without its validator": (Drifting, {"value": 1}, "state.value"),
    "aliases that swap": (Swapped, {"a": 2, "b": 1}, "state.a"),
}


@pytest.mark.parametrize("name", LOST)
async def test_what_would_come_back_as_another_value_is_refused(engine: AsyncEngine, name: str) -> None:
    state_type, values, field = LOST[name]
    state = state_type(**values) if state_type is not Swapped else Swapped(a=2, b=1)
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(engine, state_type=state_type)
    with pytest.raises(InvalidInputError) as caught:
        await repository.save(process_with(state))
    assert caught.value.field == field
    assert "hunter2" not in str(caught.value)


class Cached(BaseModel):
    total: int
    looked_up: int = Field(default=0, exclude=True)
    _hits: int = PrivateAttr(default=0)


async def test_what_a_model_excludes_is_its_own_business(engine: AsyncEngine) -> None:
    repository = PostgresProcessRepository(engine, state_type=Cached)
    state = Cached(total=1, looked_up=7)
    state._hits = 7  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    process = ProcessMetadata[Cached](domain=DOMAIN, process_id=uuid4(), process_type="order", state=state)
    await repository.save(process)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert found.state == Cached(total=1)


class WithAlias(BaseModel):
    order_id: int = Field(alias="orderId")


async def test_a_model_whose_aliases_it_does_not_write(engine: AsyncEngine) -> None:
    await test_what_was_saved_comes_back_as_what_it_was(engine, WithAlias, WithAlias(orderId=7))


async def test_a_process_type_with_another_state_type_cannot_be_assigned(engine: AsyncEngine) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(
        engine, state_type={"order": OrderState, "refund": RefundState}
    )
    process = process_with(ORDER)
    await repository.save(process)
    process.process_type, process.state = "refund", REFUND
    for version in (1, None):
        process.version = version
        with pytest.raises(InvalidInputError, match="is 'order' in its row") as caught:
            await repository.update(process)
        assert caught.value.field == "process_type"
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert (found.state, found.version) == (ORDER, 1)


class Impatient(BaseModel):
    key: str

    @field_validator("key")
    @classmethod
    def look_up(cls, value: str) -> str:
        return {"known": "known"}[value]


async def test_a_key_error_of_the_models_own_is_not_taken_for_a_missing_type(engine: AsyncEngine) -> None:
    repository = PostgresProcessRepository(engine, state_type={"order": Impatient})
    process = ProcessMetadata[Impatient](
        domain=DOMAIN, process_id=uuid4(), process_type="order", state=Impatient(key="known")
    )
    await repository.save(process)
    async with engine.begin() as connection:
        await connection.execute(update(process_table).values(state={"key": "unknown"}))
    with pytest.raises(StoredStateError, match="as Impatient cannot be read: raised KeyError"):
        await repository.get_by_id(DOMAIN, process.process_id)
