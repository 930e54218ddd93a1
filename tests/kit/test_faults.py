"""A repository with faults passes everything on, and lets one writing call fail."""

from uuid import uuid4

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process import ConcurrentUpdateError, JsonObject, ProcessMetadata
from commandbus_process.testing import (
    NO_CONNECTION,
    AcknowledgementLostError,
    ConnectionLostError,
    Fault,
    FaultyRepository,
    InMemoryProcessRepository,
)
from commandbus_process.testing.contract import ClaimingContract, ProcessRepositoryContract
from tests.support.items import DOMAIN, new_entry, new_process


class TestContract(ProcessRepositoryContract):
    @pytest.fixture
    def repository(self) -> FaultyRepository[JsonObject]:
        return FaultyRepository(InMemoryProcessRepository())


class TestContractWithAConnection(ProcessRepositoryContract, ClaimingContract):
    @pytest.fixture
    def repository(self) -> FaultyRepository[JsonObject]:
        return FaultyRepository(InMemoryProcessRepository(ignore_conn=True))

    @pytest.fixture
    def conn(self) -> AsyncConnection:
        return NO_CONNECTION


@pytest.fixture
def inner() -> InMemoryProcessRepository[JsonObject]:
    return InMemoryProcessRepository()


async def stored(inner: InMemoryProcessRepository[JsonObject], process: ProcessMetadata) -> bool:
    return await inner.get_by_id(DOMAIN, process.process_id) is not None


async def test_the_acknowledgement_is_lost_after_the_call_took_effect(
    inner: InMemoryProcessRepository[JsonObject], process: ProcessMetadata
) -> None:
    faulty = FaultyRepository(inner, Fault.ACKNOWLEDGEMENT_LOST)
    with pytest.raises(AcknowledgementLostError) as caught:
        await faulty.save(process)
    assert await stored(inner, process)
    # It is what an application catches that knows SQLAlchemy.
    assert isinstance(caught.value, DBAPIError)
    assert caught.value.connection_invalidated
    await faulty.update(process)
    assert faulty.writes == ["save", "update"]
    assert faulty.failed == "save() (writing call 1)"


async def test_the_connection_is_lost_before_the_call_takes_effect(
    inner: InMemoryProcessRepository[JsonObject], process: ProcessMetadata
) -> None:
    faulty = FaultyRepository(inner, Fault.CONNECTION_LOST, at=2)
    other = new_process()
    await faulty.save(process)
    with pytest.raises(ConnectionLostError) as caught:
        await faulty.save(other)
    assert not isinstance(caught.value, AcknowledgementLostError)
    assert not await stored(inner, other)
    await faulty.save(other)
    assert await stored(inner, other)


async def test_a_conflict_is_raised_once_by_a_call_that_compares_versions(
    inner: InMemoryProcessRepository[JsonObject], process: ProcessMetadata
) -> None:
    faulty = FaultyRepository(inner, Fault.CONFLICT)
    await faulty.save(process)
    await faulty.log_step(DOMAIN, process.process_id, new_entry())
    with pytest.raises(ConcurrentUpdateError) as caught:
        await faulty.update(process)
    assert (caught.value.process_id, caught.value.expected_version, caught.value.actual_version) == (
        process.process_id,
        1,
        2,
    )
    assert faulty.failed == "update() (writing call 3)"
    await faulty.update(process)
    assert process.version == 2


async def test_it_knows_which_processes_it_was_about(
    inner: InMemoryProcessRepository[JsonObject], process: ProcessMetadata
) -> None:
    faulty = FaultyRepository(inner)
    unknown = uuid4()
    await faulty.get_by_id(DOMAIN, unknown)
    await faulty.save_many(each for each in [process])
    await faulty.get_by_id(DOMAIN, unknown)
    assert list(faulty.touched) == [(DOMAIN, unknown), (DOMAIN, process.process_id)]


def test_a_fault_of_the_delivery_is_none_of_a_call(inner: InMemoryProcessRepository[JsonObject]) -> None:
    for fault in (Fault.DELIVERED_TWICE, Fault.DELIVERED_TWICE_AT_ONCE):
        with pytest.raises(ValueError, match="assert_redelivery_safe"):
            FaultyRepository(inner, fault)
    with pytest.raises(ValueError, match="from 1"):
        FaultyRepository(inner, at=0)
