"""Types of states that the tests of this name share."""

from dataclasses import dataclass

from pydantic import BaseModel
from typing_extensions import TypedDict


class Order(BaseModel):
    order_no: str
    total: int = 0


@dataclass
class Parcel:
    weight: int


class Booking(TypedDict):
    room: int
