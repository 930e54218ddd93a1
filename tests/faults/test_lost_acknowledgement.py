"""The connection breaks after COMMIT was carried out and before its answer came back.

The client cannot tell that from a commit that never happened, so it runs the operation again. That has to end in the
same rows as if nothing had happened: those of a twin, to which nothing happens.
"""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)
from tests.faults.proxy import Proxy, proxy_before
from tests.faults.servers import KillableServer
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process

SENT = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve", command_data={"items": 1})
REPLIED = SENT.model_copy(
    update={"reply_outcome": ReplyOutcome.SUCCESS, "reply_data": {"place": 7}, "received_at": SENT.sent_at}
)
NEXT = ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge")


class Application:
    """What an application does with the repository; each can be run again."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)

    async def save(self, process: ProcessMetadata) -> None:
        await self.repository.save(process)

    async def update(self, process: ProcessMetadata) -> None:
        await self.repository.update(_charged(process))

    async def log_step(self, process: ProcessMetadata) -> None:
        await self.repository.log_step(DOMAIN, process.process_id, SENT)

    async def record_reply(self, process: ProcessMetadata) -> None:
        await self.repository.update_step_reply(DOMAIN, process.process_id, SENT.command_id, REPLIED)

    async def start(self, process: ProcessMetadata) -> None:
        """A process and its first step, in one transaction."""
        async with self._engine.begin() as connection:
            await self.repository.save(process, connection)
            await self.repository.log_step(DOMAIN, process.process_id, SENT, connection)

    async def handle_reply(self, process: ProcessMetadata) -> None:
        """The reply to the first step, the change of the process, and its next step, in one transaction."""
        async with self._engine.begin() as connection:
            await self.repository.update_step_reply(DOMAIN, process.process_id, SENT.command_id, REPLIED, connection)
            await self.repository.update(_charged(process), connection)
            await self.repository.log_step(DOMAIN, process.process_id, NEXT, connection)


def _charged(process: ProcessMetadata) -> ProcessMetadata:
    process.status = ProcessStatus.WAITING_FOR_REPLY
    process.current_step = "charge"
    process.state["total"] = 13
    return process


@dataclass
class Case:
    """A process that is handled by way of the proxy, and a twin of it that is not."""

    proxy: Proxy
    client: Application
    undisturbed: Application
    process: ProcessMetadata
    twin: ProcessMetadata

    async def lose_the_answer(self, said: bytes, operation: Awaitable[object]) -> None:
        """Carry out the operation, which fails although it is committed."""
        self.proxy.cut_after(said)
        with pytest.raises(OperationalError) as caught:
            await operation
        assert caught.value.connection_invalidated
        # It was cut, and what the client did not get was the answer to a commit.
        [lost] = self.proxy.cuts
        assert lost.startswith(("COMMIT", "INSERT", "UPDATE"))
        await self.assert_that_it_is_like_its_twin()

    async def assert_that_it_is_like_its_twin(self) -> None:
        assert await self._rows(self.process) == await self._rows(self.twin)

    async def _rows(self, process: ProcessMetadata) -> tuple[dict[str, Any], list[ProcessAuditEntry]]:
        """All that is stored of the process, but for what no two processes have in common."""
        repository = self.undisturbed.repository
        stored = await repository.get_by_id(DOMAIN, process.process_id)
        assert stored is not None
        trail = await repository.get_audit_trail(DOMAIN, process.process_id)
        return stored.model_dump(exclude={"process_id", "updated_at"}), trail


@pytest.fixture
async def case(killable: KillableServer) -> AsyncIterator[Case]:
    async with proxy_before(killable.socket) as proxy:
        # The proxy waits for the text of a statement, which does not go over the wire once it is prepared.
        url = async_url(proxy.url(killable.application_url))
        proxied = create_async_engine(url, connect_args={"prepare_threshold": None})
        undisturbed = create_async_engine(async_url(killable.application_url))
        process = new_process()
        twin = process.model_copy(deep=True, update={"process_id": uuid4()})
        yield Case(proxy, Application(proxied), Application(undisturbed), process, twin)
        await proxied.dispose()
        await undisturbed.dispose()


async def test_save(case: Case) -> None:
    await case.undisturbed.save(case.twin)
    await case.lose_the_answer(b"INSERT INTO commandbus.process", case.client.save(case.process))
    # The second run finds that the process is there.
    with pytest.raises(ProcessAlreadyExistsError):
        await case.client.save(case.process)
    await case.assert_that_it_is_like_its_twin()


async def test_update(case: Case) -> None:
    for process in (case.process, case.twin):
        await case.undisturbed.save(process)
    await case.undisturbed.update(case.twin)
    await case.lose_the_answer(b"UPDATE commandbus.process", case.client.update(case.process))
    # The second run finds a newer version. Reading the row shows that this update wrote it.
    with pytest.raises(ConcurrentUpdateError) as caught:
        await case.client.update(case.process)
    assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
    await case.assert_that_it_is_like_its_twin()


async def test_log_step(case: Case) -> None:
    for process in (case.process, case.twin):
        await case.undisturbed.save(process)
    await case.undisturbed.log_step(case.twin)
    await case.lose_the_answer(b"INSERT INTO commandbus.process_audit", case.client.log_step(case.process))
    await case.client.log_step(case.process)
    await case.assert_that_it_is_like_its_twin()


async def test_update_step_reply(case: Case) -> None:
    for process in (case.process, case.twin):
        await case.undisturbed.start(process)
    await case.undisturbed.record_reply(case.twin)
    await case.lose_the_answer(b"UPDATE commandbus.process_audit", case.client.record_reply(case.process))
    await case.client.record_reply(case.process)
    await case.assert_that_it_is_like_its_twin()


async def test_a_transaction_that_starts_a_process(case: Case) -> None:
    await case.undisturbed.start(case.twin)
    await case.lose_the_answer(b"COMMIT", case.client.start(case.process))
    # Its first call finds the row. So all of the transaction is there.
    with pytest.raises(ProcessAlreadyExistsError):
        await case.client.start(case.process)
    await case.assert_that_it_is_like_its_twin()


async def test_a_transaction_that_handles_a_reply(case: Case) -> None:
    for process in (case.process, case.twin):
        await case.undisturbed.start(process)
    read = case.process.model_copy(deep=True)
    await case.undisturbed.handle_reply(case.twin)
    await case.lose_the_answer(b"COMMIT", case.client.handle_reply(case.process))
    # The same reply again changes nothing, and the update says that the row has moved on: with what was read before...
    with pytest.raises(ConcurrentUpdateError) as caught:
        await case.client.handle_reply(read)
    assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
    await case.assert_that_it_is_like_its_twin()
    # ... while reading it again shows that it is done.
    again = await case.client.repository.get_by_id(DOMAIN, case.process.process_id)
    assert again is not None
    assert again.current_step == NEXT.step_name


async def test_an_object_whose_transaction_was_cut_is_ahead_of_no_row(case: Case) -> None:
    """In a caller's transaction, `update` has set the version before the answer to COMMIT was lost; so it goes on."""
    for process in (case.process, case.twin):
        await case.undisturbed.start(process)
        await case.undisturbed.repository.update(process)
    await case.undisturbed.handle_reply(case.twin)
    await case.lose_the_answer(b"COMMIT", case.client.handle_reply(case.process))
    stored = await case.client.repository.get_by_id(DOMAIN, case.process.process_id)
    assert stored == case.process
