"""Types of states that the tests of this name share."""

from collections import deque
from datetime import datetime, time
from enum import Enum
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SecretStr,
)

BERLIN = ZoneInfo("Europe/Berlin")


class SameId(BaseModel):
    key: int
    token: SecretStr = SecretStr("")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameId) and self.key == other.key

    def __hash__(self) -> int:
        return self.key


class AlwaysEqual(BaseModel):
    value: Any = None

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


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
