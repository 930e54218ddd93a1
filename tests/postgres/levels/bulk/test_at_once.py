"""Two transactions at once, of which one writes many items."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from sqlalchemy import delete, event
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessMetadata,
    ProcessNotFoundError,
    StepAlreadyLoggedError,
    TransactionConflictError,
)
from commandbus_process.tables import process as process_table
from tests.support.bulk_failures import Repository
from tests.support.databases import execute
from tests.support.items import (
    BATCH,
    DOMAIN,
    for_process,
    new_entries,
    new_entry,
    new_process,
    new_processes,
    numbers,
)
from tests.support.waiting import is_waiting_for_a_lock

# At once.


async def test_two_that_save_the_same_ids(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, isolation_level: str
) -> None:
    shared = list(new_processes(3))
    loser = [new_process(), *(new_process(process.process_id) for process in shared)]
    async with engine.connect() as conn:
        await repository.save_many([new_process(), *shared], conn)
        task = asyncio.ensure_future(repository.save_many(loser))
        await is_waiting_for_a_lock(administrator)
        await conn.commit()
    [error] = await asyncio.gather(task, return_exceptions=True)
    if isolation_level == "READ COMMITTED":
        assert isinstance(error, ProcessAlreadyExistsError)
        told = {error.process_id, *(other.process_id for other in error.other_errors)}
        assert told == {process.process_id for process in shared}
    else:
        assert isinstance(error, TransactionConflictError)
        assert error.retryable
    assert await numbers(engine) == (4, 0)
    assert await repository.get_by_id(DOMAIN, loser[0].process_id) is None


async def test_of_two_that_save_the_same_thousands_of_ids_one_wins(repository: Repository, engine: AsyncEngine) -> None:
    ids = [uuid4() for _ in range(BATCH + 200)]
    async with asyncio.timeout(60):
        results = await asyncio.gather(
            *(repository.save_many(new_process(each) for each in ids) for _ in range(2)), return_exceptions=True
        )
    [lost] = [result for result in results if result != len(ids)]
    assert isinstance(lost, ProcessAlreadyExistsError | TransactionConflictError)
    assert await numbers(engine) == (len(ids), 0)


@pytest.mark.parametrize("end", ["kept", "kept, another entry", "rolled back"])
async def test_two_that_log_the_same_commands(
    repository: Repository,
    engine: AsyncEngine,
    administrator: AsyncEngine,
    process: ProcessMetadata,
    isolation_level: str,
    end: str,
) -> None:
    await repository.save(process)
    entry = new_entry()
    other = entry.model_copy(update={"step_name": "reserve" if end == "kept" else "other"})
    async with engine.connect() as conn:
        await repository.log_many(for_process(DOMAIN, process.process_id, [entry]), conn)
        task = asyncio.ensure_future(repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(), other])))
        await is_waiting_for_a_lock(administrator)
        await (conn.rollback() if end == "rolled back" else conn.commit())
    [result] = await asyncio.gather(task, return_exceptions=True)
    there = 2
    if end == "rolled back":
        assert result == 2
    elif isolation_level != "READ COMMITTED":
        assert isinstance(result, TransactionConflictError)
        there = 1
    elif end == "kept":
        assert result == 1
    else:
        assert isinstance(result, StepAlreadyLoggedError)
        assert (result.recorded, result.given) == (entry, other)
        there = 1
    assert await numbers(engine) == (1, there)


@pytest.mark.parametrize("end", ["deleted", "rolled back"])
async def test_many_steps_of_a_process_that_is_being_deleted(
    repository: Repository,
    engine: AsyncEngine,
    administrator: AsyncEngine,
    process: ProcessMetadata,
    isolation_level: str,
    end: str,
) -> None:
    await repository.save(process)
    async with administrator.connect() as deleting, engine.connect() as conn:
        await repository.save(new_process(), conn)
        await deleting.execute(delete(process_table))
        task = asyncio.ensure_future(repository.log_many(for_process(DOMAIN, process.process_id, new_entries(3)), conn))
        await is_waiting_for_a_lock(administrator)
        await (deleting.commit() if end == "deleted" else deleting.rollback())
        [result] = await asyncio.gather(task, return_exceptions=True)
        if end == "rolled back":
            assert result == 3
            await conn.commit()
            assert await numbers(engine) == (2, 3)
        elif isolation_level == "READ COMMITTED":
            assert isinstance(result, ProcessNotFoundError)
            assert len(result.other_errors) == 2
            await conn.commit()
            assert await numbers(engine) == (1, 0)
        else:
            assert isinstance(result, TransactionConflictError)


async def test_an_obstacle_to_many_that_goes_away_between_two_statements(
    repository: Repository, engine: AsyncEngine, database_url: str, process: ProcessMetadata
) -> None:
    """What was in the way of the first statement is gone when the second looks for it: it is written after all."""
    await repository.save(process)
    entry, redelivered = new_entry(), new_entry()
    key = DOMAIN, process.process_id
    await repository.log_many(for_process(*key, [entry.model_copy(update={"step_name": "in the way"}), redelivered]))
    seen: list[str] = []

    def clear_the_way(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("SAVEPOINT", "ROLLBACK", "RELEASE", "COPY")):
            seen.append("writes" if "INSERT" in statement else "looks for what is in the way")
        if seen == ["writes", "looks for what is in the way"]:
            execute(database_url, "DELETE FROM commandbus.process_audit WHERE step_name = 'in the way'")

    event.listen(engine.sync_engine, "before_cursor_execute", clear_the_way)
    # A transaction that has its snapshot already would still see the obstacle.
    own = PostgresProcessRepository(engine.execution_options(isolation_level="READ COMMITTED"))
    assert await own.log_many(for_process(*key, [new_entry(), entry, redelivered, new_entry()])) == 3
    event.remove(engine.sync_engine, "before_cursor_execute", clear_the_way)
    assert seen == ["writes", "looks for what is in the way"] * 2  # one of them is there already, and in nobody's way
    assert len(await repository.get_audit_trail(*key)) == 4


async def test_the_next_batch_is_prepared_while_the_server_has_the_last(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    process = new_process()
    async with engine.connect() as holder:
        await repository.save(process, holder)

        async def processes() -> AsyncIterator[ProcessMetadata]:
            yield new_process(process.process_id)
            for each in new_processes(BATCH):
                yield each
            await is_waiting_for_a_lock(administrator)  # the first batch, which has been sent
            await holder.rollback()
            yield new_process()

        async with asyncio.timeout(60):
            assert await repository.save_many(processes()) == BATCH + 2
