"""If a trigger swallows one of many items, none is kept."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    NothingWrittenError,
    ProcessAlreadyExistsError,
    ProcessMetadata,
    ProcessStatus,
)
from tests.support.bulk_failures import Repository
from tests.support.items import DOMAIN, for_process, new_entry, new_process, numbers
from tests.support.triggers import trigger


async def swallow(administrator: AsyncEngine, table: str, which: str) -> None:
    """Have a trigger keep some rows from being written, without an error."""
    async with administrator.begin() as conn:
        await conn.exec_driver_sql(trigger(f"BEFORE INSERT ON commandbus.{table} WHEN ({which})"))


@pytest.mark.own_database
async def test_one_entry_of_many_that_a_trigger_swallows(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    await swallow(administrator, "process_audit", "NEW.step_name = 'swallowed'")
    with pytest.raises(NothingWrittenError) as caught:
        await repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(), new_entry("swallowed")]))
    assert caught.value.process_id == process.process_id
    assert await numbers(engine) == (1, 0)


@pytest.mark.own_database
async def test_one_process_of_many_that_a_trigger_swallows(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await swallow(administrator, "process", "NEW.status = 'FAILED'")
    process.status = ProcessStatus.FAILED
    with pytest.raises((NothingWrittenError, ProcessAlreadyExistsError)) as caught:
        await repository.save_many([new_process(), process])
    assert caught.value.process_id == process.process_id
    assert await numbers(engine) == (0, 0)
