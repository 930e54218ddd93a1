"""One row that cannot be read does not stop the others."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from pydantic import BaseModel
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from typing_extensions import override

from commandbus_process import (
    InvalidInputError,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    StoredDataError,
    StoredStateError,
)
from tests.support.databases import async_url, execute
from tests.support.items import DOMAIN, new_process

PENDING = [ProcessStatus.PENDING]


class Order(BaseModel):
    total: int


@pytest.fixture
async def orders(engine: AsyncEngine) -> list[UUID]:
    """Six processes, oldest first; the first three have a state that is no order."""
    raw = PostgresProcessRepository(engine)
    ids: list[UUID] = []
    for number in range(6):
        process = new_process()
        process.state = {"total": "secret"} if number < 3 else {"total": number}
        await raw.save(process)
        ids.append(process.process_id)
    return ids


async def listed(
    repository: PostgresProcessRepository[Order], engine: AsyncEngine, how: str, limit: int, **options: object
) -> list[ProcessMetadata[Order]]:
    given: dict[str, object] = {"limit": limit, **options}
    async with engine.begin() as conn:
        method = repository.claim if how == "claim" else repository.find_by_status
        return await method(DOMAIN, PENDING, conn, **given)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("how", ["claim", "find_by_status"])
async def test_those_behind_a_bad_row_are_found(engine: AsyncEngine, orders: list[UUID], how: str) -> None:
    repository = PostgresProcessRepository(engine, state_type=Order)
    with pytest.raises(StoredStateError) as caught:
        await listed(repository, engine, how, 2)
    assert caught.value.process_id == orders[0]
    found = await listed(repository, engine, how, 2, on_unreadable="skip")
    assert [each.process_id for each in found] == orders[3:5]
    bad: list[StoredDataError] = []
    found = await listed(repository, engine, how, 100, on_unreadable=bad.append)
    assert [each.process_id for each in found] == orders[3:]
    assert [each.process_id for each in bad] == orders[:3]


@pytest.mark.parametrize("how", ["claim", "find_by_status"])
async def test_a_time_that_python_lacks_is_an_error_of_its_row(
    engine: AsyncEngine, administrator: AsyncEngine, orders: list[UUID], how: str
) -> None:
    repository = PostgresProcessRepository(engine)
    async with administrator.begin() as conn:
        await conn.execute(
            text("UPDATE commandbus.process SET completed_at = 'infinity' WHERE process_id = :id"), {"id": orders[1]}
        )
    with pytest.raises(StoredDataError) as caught:
        await listed(repository, engine, how, 6)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert caught.value.process_id == orders[1]
    found = await listed(repository, engine, how, 6, on_unreadable="skip")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert [each.process_id for each in found] == [orders[0], *orders[2:]]


async def test_types_that_the_mapping_lacks_are_not_looked_for(engine: AsyncEngine) -> None:
    raw = PostgresProcessRepository(engine)
    ours, theirs = new_process(), new_process()
    ours.state, theirs.process_type = {"total": 1}, "refund"
    for process in (theirs, ours):
        await raw.save(process)
    repository = PostgresProcessRepository(engine, state_type={"order": Order})
    assert [each.process_id for each in await repository.find_by_status(DOMAIN, PENDING)] == [ours.process_id]
    async with engine.begin() as conn:
        claimed = await repository.claim(DOMAIN, PENDING, conn, limit=5)
    assert [each.process_id for each in claimed] == [ours.process_id]
    with pytest.raises(InvalidInputError):
        await repository.find_by_status(DOMAIN, PENDING, process_type="refund")
    found = await raw.find_by_status(DOMAIN, PENDING, process_type="refund")
    assert [each.process_id for each in found] == [theirs.process_id]


async def test_a_lock_on_a_connection_in_autocommit_is_refused(engine: AsyncEngine) -> None:
    repository, process = PostgresProcessRepository(engine), new_process()
    await repository.save(process)
    modes: list[Literal[True, "nowait", "skip_locked"]] = [True, "nowait", "skip_locked"]
    async with engine.connect() as borrowed:
        conn: AsyncConnection = await borrowed.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidInputError, match="autocommit"):
            await repository.claim(DOMAIN, PENDING, conn, limit=1)
        for mode in modes:
            with pytest.raises(InvalidInputError, match="autocommit"):
                await repository.get_by_id(DOMAIN, process.process_id, conn, for_update=mode)
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process


@pytest.mark.own_database
@pytest.mark.parametrize("style", ["German", "SQL, MDY", "Postgres"])
async def test_no_setting_makes_a_committed_write_fail(database_url: str, application_url: str, style: str) -> None:
    execute(database_url, f"ALTER DATABASE {make_url(database_url).database} SET DateStyle = {style}")
    engine = create_async_engine(async_url(application_url))
    async with engine.connect() as conn:
        assert (await conn.execute(text("SHOW DateStyle"))).scalar_one().startswith(style)
    repository, process = PostgresProcessRepository(engine), new_process()
    entry = ProcessAuditEntry(step_name="reserve", command_id=process.process_id, command_type="Reserve")
    await repository.save(process)
    await repository.update(process)
    assert await repository.advance(process, sent=entry)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process
    assert await repository.find_by_status(DOMAIN, PENDING) == [process]
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [entry]
    await engine.dispose()


async def test_a_time_in_the_trail_that_python_lacks(engine: AsyncEngine, administrator: AsyncEngine) -> None:
    repository, process = PostgresProcessRepository(engine), new_process()
    entries = [
        ProcessAuditEntry(step_name=f"step {number}", command_id=uuid4(), command_type="Do") for number in range(3)
    ]
    await repository.save(process, sent=entries)
    async with administrator.begin() as conn:
        await conn.execute(
            text("UPDATE commandbus.process_audit SET sent_at = '-infinity' WHERE command_id = :id"),
            {"id": entries[1].command_id},
        )
    with pytest.raises(StoredDataError, match=str(entries[1].command_id)):
        await repository.get_audit_trail(DOMAIN, process.process_id)


class _Refusing(Loader):
    """A loader of the host's, for its own purposes."""

    @override
    def load(self, data: Buffer) -> datetime:
        raise ValueError("the host reads no times")


async def test_no_loader_of_the_host_makes_a_committed_write_fail(application_url: str) -> None:
    engine = create_async_engine(async_url(application_url))

    def register(adapted: Any, _: object) -> None:
        adapted.driver_connection.adapters.register_loader("timestamptz", _Refusing)

    event.listen(engine.sync_engine, "connect", register)
    repository, process = PostgresProcessRepository(engine), new_process()
    await repository.save(process)
    await repository.update(process)
    assert process.version == 2
    assert await repository.find_by_status(DOMAIN, PENDING) == [process]
    await engine.dispose()
