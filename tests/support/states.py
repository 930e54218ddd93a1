"""Typed states for the tests, and processes that have them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID, uuid4

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    computed_field,
)
from typing_extensions import TypedDict

from commandbus_process import ProcessMetadata
from tests.support.items import DOMAIN


class Item(BaseModel):
    sku: str
    price: Decimal


class OrderState(BaseModel):
    order_id: UUID
    placed_at: datetime
    items: list[Item] = []
    weight: float = 0.0


class ExpressOrderState(OrderState):
    courier: str | None = None


class RefundState(BaseModel):
    kind: Literal["refund"] = "refund"
    amount: Decimal


@dataclass
class Shipment:
    parcel: UUID
    sent_on: datetime | None = None


class Booking(TypedDict):
    room: int
    until: datetime


class CamelCase(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    order_id: int = Field(alias="orderId")


class WithTotal(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prices: list[int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return sum(self.prices)


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ORDER = OrderState(order_id=UUID(int=1), placed_at=NOON, items=[Item(sku="book", price=Decimal("12.50"))], weight=1e23)
EXPRESS = ExpressOrderState(order_id=UUID(int=2), placed_at=NOON, courier="bicycle")
REFUND = RefundState(amount=Decimal("0.10"))


def process_with(state: Any, process_type: str = "order") -> ProcessMetadata[Any]:
    generic: Any = ProcessMetadata
    parametrised: type[ProcessMetadata[Any]] = generic[Any]
    return parametrised(domain=DOMAIN, process_id=uuid4(), process_type=process_type, state=state)
