"""The repository in memory keeps the contract, and says what it cannot do."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    ProcessAlreadyExistsError,
    ProcessMetadata,
    ProcessStatus,
    StoredDataError,
    StoredStateError,
)
from commandbus_process.testing import NO_CONNECTION, InMemoryProcessRepository, InMemoryStore
from commandbus_process.testing.contract import ClaimingContract, ProcessRepositoryContract
from tests.support.items import DOMAIN, new_entry, new_process


class TestContract(ProcessRepositoryContract):
    @pytest.fixture
    def repository(self) -> InMemoryProcessRepository[JsonObject]:
        return InMemoryProcessRepository()


class TestContractWithAConnection(ProcessRepositoryContract, ClaimingContract):
    @pytest.fixture
    def repository(self) -> InMemoryProcessRepository[JsonObject]:
        return InMemoryProcessRepository(ignore_conn=True)

    @pytest.fixture
    def conn(self) -> AsyncConnection:
        return NO_CONNECTION


async def test_a_connection_is_refused(process: ProcessMetadata) -> None:
    repository = InMemoryProcessRepository()
    for call in (
        repository.save(process, NO_CONNECTION),
        repository.get_by_id(DOMAIN, process.process_id, NO_CONNECTION),
        repository.get_by_id(DOMAIN, process.process_id, NO_CONNECTION, for_update=True),
        repository.claim(DOMAIN, [ProcessStatus.PENDING], NO_CONNECTION, limit=1),
        repository.save_many([process], NO_CONNECTION),
    ):
        with pytest.raises(InvalidInputError, match="ignore_conn=True") as caught:
            await call
        assert caught.value.field == "conn"
    assert await repository.get_by_id(DOMAIN, process.process_id) is None


async def test_what_a_real_one_refuses_without_a_connection_is_refused(process: ProcessMetadata) -> None:
    """So that a test does not pass with code that cannot work."""
    repository = InMemoryProcessRepository(ignore_conn=True)
    await repository.save(process, NO_CONNECTION)
    nothing: Any = None
    with pytest.raises(InvalidInputError, match="is needed"):
        await repository.claim(DOMAIN, [ProcessStatus.PENDING], nothing, limit=1)
    with pytest.raises(InvalidInputError, match="needs conn"):
        await repository.get_by_id(DOMAIN, process.process_id, for_update=True)
    assert await repository.get_by_id(DOMAIN, process.process_id, NO_CONNECTION, for_update=True) == process


class Order(BaseModel):
    total: int


class Refund(BaseModel):
    amount: int


async def test_typed_states() -> None:
    by_type: dict[str, Any] = {"order": Order, "refund": Refund}
    repository = InMemoryProcessRepository[Order | Refund](state_type=by_type)
    order = ProcessMetadata[Order | Refund](
        domain=DOMAIN, process_id=uuid4(), process_type="order", state=Order(total=1)
    )
    await repository.save(order)
    found = await repository.get_by_id(DOMAIN, order.process_id)
    assert found == order
    assert found is not None
    assert type(found.state) is Order
    assert found.state is not order.state
    with pytest.raises(InvalidInputError, match="no state type"):
        await repository.find_by_status(DOMAIN, [ProcessStatus.PENDING], process_type="parcel")


async def test_two_repositories_on_one_store() -> None:
    store = InMemoryStore()
    plain = InMemoryProcessRepository(store=store)
    unfit, fit, other = (new_process() for _ in range(3))
    fit.state, other.process_type = {"total": 1}, "refund"
    for process in (unfit, fit, other):
        await plain.save(process)
    typed = InMemoryProcessRepository(state_type={"order": Order}, store=store)
    with pytest.raises(StoredStateError) as caught:
        await typed.get_by_id(DOMAIN, unfit.process_id)
    assert (caught.value.process_id, caught.value.state_type) == (unfit.process_id, "Order")
    errors: list[StoredDataError] = []
    pending = [ProcessStatus.PENDING]
    found = await typed.find_by_status(DOMAIN, pending, limit=1, on_unreadable=errors.append)
    assert [each.process_id for each in found] == [fit.process_id]
    assert [each.process_id for each in errors] == [unfit.process_id]
    with pytest.raises(StoredStateError):
        await typed.find_by_status(DOMAIN, pending)
    ids = [unfit.process_id, fit.process_id]
    assert list(await typed.get_by_ids(DOMAIN, ids, on_unreadable="skip")) == [fit.process_id]


async def test_a_redelivery_is_logged_as_on_postgresql(
    process: ProcessMetadata, caplog: pytest.LogCaptureFixture
) -> None:
    repository, entry = InMemoryProcessRepository(), new_entry()
    await repository.save(process, sent=entry)
    with caplog.at_level(logging.INFO, "commandbus_process"):
        assert not await repository.log_step(DOMAIN, process.process_id, entry)
    assert [record.getMessage() for record in caplog.records] == ["log_step recognised a redelivery and wrote nothing"]


async def test_what_comes_while_many_are_saved_is_seen_at_the_end(process: ProcessMetadata) -> None:
    """Nothing of them is visible before, and nothing stays if one of them is taken in the meantime."""
    repository, other = InMemoryProcessRepository(), new_process()

    async def processes() -> AsyncGenerator[ProcessMetadata]:
        yield other
        yield process
        for _ in range(1000):  # so that the batch of the two is done
            yield new_process()
        await repository.save(process.model_copy(deep=True))
        assert await repository.get_by_id(DOMAIN, other.process_id) is None

    async with aclosing(processes()) as items:
        with pytest.raises(ProcessAlreadyExistsError):
            await repository.save_many(items)
    assert await repository.get_by_id(DOMAIN, other.process_id) is None


async def test_other_tasks_run_between_two_calls(process: ProcessMetadata) -> None:
    """So that a race in your code can show itself."""
    repository = InMemoryProcessRepository()
    await repository.save(process)

    async def count() -> None:
        found = await repository.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        await repository.update(found)

    results = await asyncio.gather(count(), count(), return_exceptions=True)
    assert [type(each) for each in results if each is not None] == [ConcurrentUpdateError]
