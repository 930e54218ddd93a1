"""The contract, in its own transaction and on the caller's connection, and what it means for rows of other software."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    StoredDataError,
)
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit
from commandbus_process.testing.contract import ClaimingContract, ProcessRepositoryContract
from commandbus_process.testing.contract._given import logged, reply, sent
from tests.support.databases import write_unchecked
from tests.support.items import DOMAIN, new_process

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Repository = PostgresProcessRepository[JsonObject]


class TestContract(ProcessRepositoryContract):
    """Each method in a transaction of its own."""


class TestContractOnTheCallersConnection(ProcessRepositoryContract, ClaimingContract):
    """Each method in the caller's transaction."""

    @pytest.fixture
    async def conn(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with engine.begin() as connection:
            yield connection


async def test_the_stored_status_is_the_value(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    process.status = ProcessStatus.WAITING_FOR_REPLY
    await repository.save(process)
    async with engine.connect() as connection:
        assert (await connection.execute(select(process_table.c.status))).scalar_one() == "WAITING"


async def test_update_takes_its_time_from_the_database(repository: Repository, engine: AsyncEngine) -> None:
    process = new_process()
    process.updated_at = NOON
    await repository.save(process)
    async with engine.begin() as connection:
        now = (await connection.execute(select(func.now()))).scalar_one()
        await repository.update(process, connection)
    assert process.updated_at == now


async def test_times_come_back_in_utc_in_any_time_zone_of_the_session(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL TIME ZONE 'Asia/Kathmandu'")
        found = await repository.get_by_id(DOMAIN, process.process_id, connection)
        assert found is not None
        assert found.created_at.tzinfo == UTC
        assert found == process
        for write in (repository.update, repository.advance):
            await write(found, connection)
            assert found.updated_at.tzinfo == UTC
            assert found == await repository.get_by_id(DOMAIN, process.process_id, connection)


async def test_a_status_of_newer_software_is_an_error_that_names_the_row(
    repository: Repository, database_url: str, process: ProcessMetadata
) -> None:
    await repository.save(process)
    write_unchecked(database_url, "UPDATE commandbus.process SET status = 'PAUSED'")
    with pytest.raises(StoredDataError, match="status") as caught:
        await repository.get_by_id(DOMAIN, process.process_id)
    assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)


async def test_an_outcome_of_newer_software_is_an_error_that_names_the_command(
    repository: Repository, database_url: str, process: ProcessMetadata
) -> None:
    entry = sent()
    await logged(repository, process, entry, None)
    write_unchecked(database_url, "UPDATE commandbus.process_audit SET reply_outcome = 'PARTIAL', received_at = now()")
    with pytest.raises(StoredDataError, match=rf"{entry.command_id}.*reply_outcome"):
        await repository.get_audit_trail(DOMAIN, process.process_id)


async def test_a_json_null_that_other_software_wrote_is_no_data(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    entry = sent()
    entry.command_data = None
    await logged(repository, process, entry, None)
    first = reply(entry)
    first.reply_data = None
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, first)
    async with engine.begin() as connection:
        await connection.execute(update(process_audit).values(reply_data=JSONB.NULL))
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, first)
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id)
    assert (found.command_data, found.reply_data) == (None, None)


async def test_rows_of_software_that_writes_plain_sql_are_read(repository: Repository, engine: AsyncEngine) -> None:
    process_id, command_id = uuid4(), uuid4()
    async with engine.begin() as connection:
        await connection.execute(
            insert(process_table).values(domain=DOMAIN, process_id=process_id, process_type="order")
        )
        await connection.execute(
            insert(process_audit).values(
                domain=DOMAIN,
                process_id=process_id,
                step_name="reserve",
                command_id=command_id,
                command_type="ReserveStock",
                sent_at=NOON,
            )
        )
    found = await repository.get_by_id(DOMAIN, process_id)
    assert found is not None
    assert (found.state, found.status, found.version) == ({}, ProcessStatus.PENDING, 1)
    await repository.update(found)
    entry = ProcessAuditEntry(step_name="reserve", command_id=command_id, command_type="ReserveStock", sent_at=NOON)
    assert await repository.get_audit_trail(DOMAIN, process_id) == [entry]
