"""A state has the class that was declared, and no other: not a subclass that somebody happened to import."""

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import TypeAliasType

from commandbus_process import InvalidInputError, PostgresProcessRepository, StoredStateError
from commandbus_process.tables import process as process_table
from tests.support.declared_types import Booking, Order, Parcel
from tests.support.items import DOMAIN
from tests.support.states import process_with


class ExpressOrder(Order):
    courier: str | None = None


class NightOrder(ExpressOrder):
    guard: str


@dataclass(slots=True)
class FragileParcel(Parcel):
    padding: int


def repository_of(engine: AsyncEngine, state_type: object) -> PostgresProcessRepository[Any]:
    return PostgresProcessRepository(engine, state_type=state_type)


Orders = TypeAliasType("Orders", Annotated[Order | Annotated[ExpressOrder, Field(title="express")], "orders"])


@pytest.mark.parametrize(
    ("state_type", "state", "told"),
    [
        (Order, ExpressOrder(order_no="7"), "is ExpressOrder, which is not declared; declare state_type=Order | Expre"),
        (Orders, NightOrder(order_no="7", guard="two"), "declare state_type=Order | ExpressOrder | NightOrder"),
        (ExpressOrder, Order(order_no="7"), "is Order, which is not declared"),
        (Parcel, FragileParcel(weight=1, padding=2), "declare state_type=Parcel | FragileParcel"),
        (Order, {"order_no": "7"}, "is a dict, not Order"),
        (Order | Parcel, {"weight": 7}, "is a dict, not Order | Parcel"),
        (Order, None, "is None, not Order"),
        (Order | None, 7, "is an int, not Order | None"),
        (Booking, Order(order_no="7"), "declare state_type=Booking | Order"),
    ],
    ids=str,
)
async def test_another_class_is_refused_with_the_remedy(
    engine: AsyncEngine, state_type: object, state: object, told: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await repository_of(engine, state_type).save(process_with(state))
    assert caught.value.field == "state"
    assert told in caught.value.reason


@pytest.mark.parametrize("declared", [Order | ExpressOrder, ExpressOrder | Order, Orders], ids=str)
@pytest.mark.parametrize(
    "state", [Order(order_no="7"), ExpressOrder(order_no="7"), ExpressOrder(order_no="7", courier="x")]
)
async def test_the_remedy_helps_in_any_order_of_the_classes(
    engine: AsyncEngine, declared: object, state: object
) -> None:
    """An order lacks the courier only because it has none: it must not become an express order."""
    repository, process = repository_of(engine, declared), process_with(state)
    await repository.save(process)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert (type(found.state), found.state) == (type(state), state)


async def test_a_view_is_not_what_an_old_row_comes_back_as(engine: AsyncEngine) -> None:
    """The row was written when an order had a field more, which a view for an API happens to have too."""
    repository, process = repository_of(engine, Order), process_with(Order(order_no="7"))
    await repository.save(process)
    async with engine.begin() as conn:
        await conn.execute(update(process_table).values(state={"order_no": "7", "total": 0, "url": "/orders/7"}))

    class OrderView(Order):
        url: str = "/orders"

    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert type(found.state) is Order
    assert not isinstance(found.state, OrderView)


class Weighed(BaseModel):
    weight: float


async def test_a_stored_number_beyond_floats_is_an_error_of_its_row(engine: AsyncEngine) -> None:
    """Pydantic's parser makes it infinite, which no update could write again."""
    repository, process = repository_of(engine, Weighed), process_with(Weighed(weight=1.5e308))
    await repository.save(process)
    assert await repository.get_by_id(DOMAIN, process.process_id) is not None
    async with engine.begin() as conn:
        await conn.execute(text(f"UPDATE commandbus.process SET state = '{{\"weight\": 1{'0' * 309}.5}}'"))
    for call in (repository.get_by_id(DOMAIN, process.process_id), repository.find_by_status(DOMAIN, [process.status])):
        with pytest.raises(StoredStateError, match="Input should be a finite number"):
            await call
