"""An order whose type has changed twice, and the three programs that know one version more each."""

from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import JsonObject, ProcessMetadata, StateVersions
from tests.support.items import DOMAIN


class FirstOrder(BaseModel):
    """Version 1: one name, `total`, and `count`: how many steps are done."""

    model_config = ConfigDict(extra="forbid")
    name: str
    total: int
    count: int = 0
    done: list[str] = []


class SecondOrder(BaseModel):
    """Version 2: the name is split, and `count` is gone: the list has it."""

    model_config = ConfigDict(extra="forbid")
    first: str
    last: str
    total: int
    done: list[str] = []


class ThirdOrder(BaseModel):
    """Version 3: `total` is called `amount`."""

    model_config = ConfigDict(extra="forbid")
    first: str
    last: str
    amount: int
    done: list[str] = []


def split(state: JsonObject) -> JsonObject:
    first, _, last = str(state["name"]).partition(" ")
    return {"first": first, "last": last, "total": state["total"], "done": state["done"]}


def join(state: JsonObject) -> JsonObject:
    name, done = f"{state['first']} {state['last']}", state["done"]
    assert isinstance(done, list)
    return {"name": name, "total": state["total"], "count": len(done), "done": done}


def rename(state: JsonObject) -> JsonObject:
    state["amount"] = state.pop("total")
    return state


def undo_rename(state: JsonObject) -> JsonObject:
    state["total"] = state.pop("amount")
    return state


SECOND = StateVersions(SecondOrder, version=2, upcasters={1: split}, downcasters={2: join})
THIRD = StateVersions(
    ThirdOrder, version=3, upcasters={1: split, 2: rename}, downcasters={2: join, 3: undo_rename}
)  # fmt: skip
THIRD_WRITING = {
    number: StateVersions(
        ThirdOrder,
        version=3,
        upcasters={1: split, 2: rename},
        downcasters={2: join, 3: undo_rename},
        write_version=number,
    )
    for number in (1, 2, 3)
}

STORED: dict[int, JsonObject] = {
    1: {"name": "Ada Lovelace", "total": 42, "count": 0, "done": []},
    2: {"first": "Ada", "last": "Lovelace", "total": 42, "done": []},
    3: {"first": "Ada", "last": "Lovelace", "amount": 42, "done": []},
}
"""One order, as each version stores it."""
ORDERS: dict[int, Any] = {
    1: FirstOrder(name="Ada Lovelace", total=42),
    2: SecondOrder(first="Ada", last="Lovelace", total=42),
    3: ThirdOrder(first="Ada", last="Lovelace", amount=42),
}
"""The same, as each program has it."""
PROGRAMS: dict[int, Any] = {1: FirstOrder, 2: SECOND, 3: THIRD}
"""What each program declares as its `state_type`."""


def order(version: int, process_id: UUID | None = None, **changes: Any) -> ProcessMetadata[Any]:
    generic: Any = ProcessMetadata
    parametrised: type[ProcessMetadata[Any]] = generic[type(ORDERS[version])]
    state = ORDERS[version].model_copy(deep=True)
    return parametrised(
        domain=DOMAIN, process_id=process_id or uuid4(), process_type="order", state=state
    ).model_copy(update=changes)  # fmt: skip


async def stored(engine: AsyncEngine, process_id: UUID) -> tuple[int | None, JsonObject]:
    """The version and the state in a row, read with SQL of the test's own."""
    select = text("SELECT state_version, state FROM commandbus.process WHERE process_id = :id")
    async with engine.connect() as connection:
        version, state = (await connection.execute(select, {"id": process_id})).one()
    return version, state
