"""In autocommit, statements cannot take effect together."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    PostgresProcessRepository,
)
from tests.support.bulk_failures import FAILURES, Known
from tests.support.items import Statements, for_process, new_entries, new_entry, new_process, new_processes, numbers

# Autocommit, in which statements cannot take effect together.


async def test_a_connection_in_autocommit_is_refused(known: Known, engine: AsyncEngine) -> None:
    statements = Statements(engine)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        for call in (
            known.repository.save_many([new_process()], conn),
            known.repository.log_many(for_process(*known.key, [new_entry()]), conn),
            known.repository.log_many([(*known.key, new_entry())], conn),
        ):
            with pytest.raises(InvalidInputError, match="autocommit") as caught:
                await call
            assert caught.value.field == "conn"
        assert statements.sent == []
        await known.repository.save(new_process(), conn)
    assert await numbers(engine) == (2, 1)


@pytest.fixture
async def in_autocommit(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine whose only connection is in autocommit."""
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "connect_args": {"prepare_threshold": None}}
    made = create_async_engine(engine.url, isolation_level="AUTOCOMMIT", **options)
    yield made
    await made.dispose()


async def driver_of(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return (await connection.get_raw_connection()).driver_connection


async def test_an_engine_in_autocommit_is_no_exception(known: Known, in_autocommit: AsyncEngine) -> None:
    driver = await driver_of(in_autocommit)
    assert driver.autocommit
    known.repository = PostgresProcessRepository(in_autocommit)
    for error, attempt in (FAILURES["a taken id"], FAILURES["another entry's command"]):
        with pytest.raises(error):
            await attempt(known, None)
        assert await numbers(in_autocommit) == (1, 1)
    assert await known.repository.save_many(new_processes(3)) == 3
    assert await known.repository.log_many(for_process(*known.key, new_entries(3))) == 3
    assert await numbers(in_autocommit) == (4, 4)
    again = await driver_of(in_autocommit)
    assert again is driver
    assert again.autocommit
    # Not only by its name: what is written takes effect at once.
    async with in_autocommit.connect() as conn:
        await known.repository.save(new_process(), conn)
        await conn.rollback()
    assert await numbers(in_autocommit) == (5, 4)
