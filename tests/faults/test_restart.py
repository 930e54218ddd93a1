"""The server restarts under a pool of connections that nobody uses at the time."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import JsonObject, PostgresProcessRepository
from tests.faults.servers import KillableServer
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process

RESTARTS: dict[str, Callable[[KillableServer], None]] = {
    "shut down": KillableServer.stop,  # tells the sessions so
    "killed": KillableServer.kill,  # tells nobody anything
}
restarts = pytest.mark.parametrize("end", RESTARTS.values(), ids=RESTARTS)


@asynccontextmanager
async def engine_to(server: KillableServer, *, pool_pre_ping: bool) -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine(async_url(server.application_url), pool_pre_ping=pool_pre_ping)
    try:
        yield engine
    finally:
        await engine.dispose()


@restarts
async def test_the_first_operation_after_a_restart_fails_and_the_second_works(
    end: Callable[[KillableServer], None], killable: KillableServer
) -> None:
    async with engine_to(killable, pool_pre_ping=False) as engine:
        repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
        process = new_process()
        await repository.save(process)
        end(killable)
        killable.start()
        with pytest.raises(OperationalError) as caught:
            await repository.update(process)
        assert caught.value.connection_invalidated
        # Nothing was sent, so nothing was written. The object is as it was read.
        assert process.version == 1
        await repository.update(process)
        assert process.version == 2
        assert await repository.get_by_id(DOMAIN, process.process_id) == process


@restarts
async def test_one_failure_is_enough_for_all_connections_of_the_pool(
    end: Callable[[KillableServer], None], killable: KillableServer
) -> None:
    async with engine_to(killable, pool_pre_ping=False) as engine:
        repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
        async with engine.connect() as one, engine.connect() as other:
            for connection in (one, other):
                await repository.save(new_process(), connection)
                await connection.commit()
        end(killable)
        killable.start()
        with pytest.raises(OperationalError):
            await repository.save(new_process())
        for _ in range(2):
            async with engine.begin() as one, engine.begin() as other:
                for connection in (one, other):
                    await repository.save(new_process(), connection)


@restarts
async def test_a_pool_that_asks_first_does_not_notice_a_restart(
    end: Callable[[KillableServer], None], killable: KillableServer
) -> None:
    async with engine_to(killable, pool_pre_ping=True) as engine:
        repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
        process = new_process()
        await repository.save(process)
        end(killable)
        killable.start()
        await repository.update(process)
        assert process.version == 2
        end(killable)
        killable.start()
        async with engine.begin() as connection:
            assert await repository.get_by_id(DOMAIN, process.process_id, connection) == process


@restarts
async def test_a_callers_transaction_is_lost_with_the_server(
    end: Callable[[KillableServer], None], killable: KillableServer
) -> None:
    """Also with pool_pre_ping, which looks at a connection only when it is borrowed."""
    async with engine_to(killable, pool_pre_ping=True) as engine:
        repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
        kept, lost = new_process(), new_process()
        await repository.save(kept)

        async def write() -> None:
            async with engine.begin() as connection:
                await repository.save(lost, connection)
                end(killable)
                killable.start()
                await repository.update(kept, connection)

        with pytest.raises(OperationalError) as caught:
            await write()
        assert caught.value.connection_invalidated
        assert await repository.get_by_id(DOMAIN, lost.process_id) is None
        assert await repository.get_by_id(DOMAIN, kept.process_id) == kept
