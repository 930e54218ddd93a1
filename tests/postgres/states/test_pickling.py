"""Processes of a typed repository can be pickled, and read in another program, wherever their class was first made."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar
from uuid import uuid4

import pytest
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata
from tests.support.items import DOMAIN, new_process
from tests.support.states import ORDER, REFUND, Booking, OrderState, RefundState, Shipment, process_with

StateT = TypeVar("StateT")


class Host(ProcessMetadata[StateT], Generic[StateT]):
    """A class of the host's own, with a field more."""

    tenant: str = ""


class OfOrders(ProcessMetadata[OrderState]):
    """One that is not generic any more."""


def made(of_class: Any, state: Any = ORDER, **more: Any) -> Any:
    process = of_class(domain=DOMAIN, process_id=uuid4(), process_type="order", state=state, **more)
    process.current_step = "reserve"
    return process


def in_another_program(pickled: bytes, path: Path) -> list[str]:
    """In a program that never made the class."""
    path.write_bytes(pickled)
    program = (
        "import pickle, sys\n"
        "process = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(type(process).__name__, type(process.state).__name__, process.current_step, sep='\\n')\n"
        "process.version = 7\n"  # assignments are checked still
        "pickle.dump(process, open(sys.argv[1], 'wb'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def make_in_a_function() -> Any:
    generic: Any = ProcessMetadata
    return made(generic[OrderState | RefundState | None])


@pytest.mark.parametrize(
    "process",
    [
        new_process(),
        made(ProcessMetadata[JsonObject], {"a": 1}),
        made(ProcessMetadata[OrderState]),
        made(ProcessMetadata[OrderState | RefundState], REFUND),
        made(ProcessMetadata[Annotated[OrderState | RefundState, "either"]]),
        made(ProcessMetadata[Shipment], Shipment(parcel=uuid4())),
        made(ProcessMetadata[Any], ORDER),
        made(Host[OrderState], tenant="a"),
        made(OfOrders),
        make_in_a_function(),
    ],
    ids=lambda process: type(process).__name__,
)
def test_a_process_is_pickled_and_copied(process: Any, tmp_path: Path) -> None:
    process.current_step = "reserve"
    unpickled = [pickle.loads(pickle.dumps(process, protocol)) for protocol in range(2, 6)]  # noqa: S301 - its own
    for again in (*unpickled, copy.copy(process), copy.deepcopy(process)):
        assert type(again) is type(process)
        assert again == process
        assert again.model_fields_set == process.model_fields_set
    path = tmp_path / "process.pickle"
    name, state, step = in_another_program(pickle.dumps(process), path)
    assert (name, state, step) == (type(process).__name__, type(process.state).__name__, "reserve")
    returned = pickle.loads(path.read_bytes())  # noqa: S301 - its own
    assert type(returned) is type(process)
    assert (returned.state, returned.version) == (process.state, 7)


def test_a_type_whose_metadata_equals_nothing() -> None:
    """Pydantic then makes a new class. `==` calls the two equal."""
    generic: Any = ProcessMetadata
    process = made(generic[Annotated[OrderState | RefundState, Field(title="either")]])
    again = pickle.loads(pickle.dumps(process))  # noqa: S301 - its own
    assert again == process
    assert isinstance(again, ProcessMetadata)


async def test_what_a_repository_returns_is_pickled(engine: AsyncEngine) -> None:
    for declared, state in ((OrderState | RefundState, ORDER), ({"order": OrderState}, ORDER), (Booking, None)):
        repository: PostgresProcessRepository[Any] = PostgresProcessRepository(engine, state_type=declared)
        process = process_with(state or Booking(room=7, until=ORDER.placed_at))
        await repository.save(process)
        found = await repository.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        again = pickle.loads(pickle.dumps(found))  # noqa: S301 - its own
        assert (type(again), again) == (type(found), found)
        again.current_step = "next"
        await repository.update(again)
        assert found.current_step is None


def test_a_copy_shares_what_it_shared_before() -> None:
    process = new_process()
    assert copy.copy(process).state is process.state
    assert copy.deepcopy(process).state is not process.state


class Loose(BaseModel):
    items: list[int] = []


async def test_objects_of_one_list_share_nothing_that_could_be_changed(engine: AsyncEngine) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(engine, state_type=Loose)
    for _ in range(2):
        await repository.save(process_with(Loose()))
    first, second = await repository.find_by_status(DOMAIN, [process_with(Loose()).status])
    first.model_fields_set.clear()
    first.state.items.append(1)
    first.state.model_fields_set.clear()
    assert second.model_fields_set == set(ProcessMetadata.model_fields)
    assert second.state.items == []
    assert second.state.model_fields_set == {"items"}
