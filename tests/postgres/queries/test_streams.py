"""A stream leaves nothing open, goes on where it ended, and misses nothing that was there all the time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel
from sqlalchemy import delete, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessFilter,
    ProcessMetadata,
    ProcessStatus,
    ProcessStream,
    StoredStateError,
)
from commandbus_process.tables import process as process_table
from tests.support.databases import async_url
from tests.support.items import DOMAIN, NOON, new_process

Queries = PostgresProcessQueries[JsonObject]
Repository = PostgresProcessRepository[JsonObject]
WANTED = ProcessFilter(domain=DOMAIN)
MANY = 2_500  # more than two batches


def numbered(number: int, **fields: Any) -> ProcessMetadata:
    return ProcessMetadata(
        domain=DOMAIN, process_id=UUID(int=number + 1), process_type="order", state={"number": number}, **fields
    )


@pytest.fixture
async def single(application_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine with one connection: whoever keeps it blocks everybody else."""
    engine = create_async_engine(async_url(application_url), pool_size=1, max_overflow=0, pool_timeout=5)
    yield engine
    await engine.dispose()


class StopItError(Exception):
    pass


async def breaks(stream: ProcessStream) -> None:
    async for _ in stream:
        break


async def raises(stream: ProcessStream) -> None:
    async for _ in stream:
        raise StopItError


async def is_cancelled(stream: ProcessStream) -> None:
    async for _ in stream:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)


async def leaves_a_scope(stream: ProcessStream) -> None:
    async for _ in stream:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        break


ENDS: dict[str, Callable[[ProcessStream], Awaitable[None]]] = {
    "breaks": breaks,
    "raises": raises,
    "is cancelled": is_cancelled,
    "leaves a scope": leaves_a_scope,
}


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("end", ENDS)
async def test_nothing_stays_open(
    single: AsyncEngine,
    repository: Repository,
    end: str,
    consistent: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    await repository.save_many(map(numbered, range(MANY)))
    queries = PostgresProcessQueries(single)

    async def consume() -> None:
        async with queries.stream(WANTED, consistent=consistent) as stream:
            await ENDS[end](stream)

    [result] = await asyncio.gather(asyncio.ensure_future(consume()), return_exceptions=True)
    assert result is None or isinstance(result, StopItError | asyncio.CancelledError)
    # The only connection is free, and in no transaction.
    async with single.connect() as conn:
        assert (await queries.count(WANTED, conn)).value == MANY


@pytest.mark.parametrize("consistent", [False, True])
async def test_a_scope_around_the_stream_is_cancelled(
    single: AsyncEngine,
    repository: Repository,
    consistent: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    await repository.save_many(map(numbered, range(MANY)))
    queries = PostgresProcessQueries(single)
    with anyio.CancelScope() as scope:
        async with queries.stream(WANTED, consistent=consistent) as stream:
            async for _ in stream:
                scope.cancel()
                await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    async with single.connect() as conn:
        assert (await queries.count(WANTED, conn)).value == MANY


async def test_between_its_pages_a_stream_holds_no_connection(single: AsyncEngine, repository: Repository) -> None:
    await repository.save_many(map(numbered, range(MANY)))
    queries = PostgresProcessQueries(single)
    async with queries.stream(WANTED) as stream:
        async for _ in stream:
            assert (await queries.count(WANTED, at_most=1)).value == 1
            break


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("seen", [0, 1, 999, 1_000, 1_001, MANY])
async def test_a_stream_goes_on_at_its_cursor(
    queries: Queries,
    repository: Repository,
    seen: int,
    consistent: bool,  # noqa: FBT001 - a parameter of the test
    newest_first: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    await repository.save_many(numbered(number, created_at=NOON) for number in range(MANY))
    numbers: list[Any] = []
    async with queries.stream(WANTED, newest_first=newest_first, consistent=consistent) as stream:
        while len(numbers) < seen:
            numbers.append((await anext(stream)).state["number"])
        cursor = stream.cursor
    assert (cursor is None) == (seen == 0)
    async with queries.stream(WANTED, newest_first=newest_first, after=cursor) as stream:
        assert stream.cursor == cursor
        numbers += [process.state["number"] async for process in stream]
    assert numbers == sorted(range(MANY), reverse=newest_first)


async def test_a_page_goes_on_where_a_stream_ended(queries: Queries, repository: Repository) -> None:
    await repository.save_many(numbered(number, created_at=NOON) for number in range(5))
    async with queries.stream(WANTED) as stream:
        await anext(stream)
        page = await queries.page(WANTED, after=stream.cursor)
    assert [item.process_id for item in page.items] == [UUID(int=number) for number in range(2, 6)]


async def test_a_consistent_stream_shows_one_moment(
    queries: Queries, repository: Repository, administrator: AsyncEngine
) -> None:
    await repository.save_many(numbered(number, created_at=NOON) for number in range(MANY))
    async with queries.stream(WANTED, consistent=True) as stream:
        await anext(stream)
        async with administrator.begin() as connection:
            await connection.execute(delete(process_table).where(process_table.c.process_id == UUID(int=2)))
            await connection.execute(update(process_table).values(status="COMPLETED"))
        await repository.save(numbered(MANY, created_at=NOON))
        rest = [process async for process in stream]
    assert [process.process_id.int for process in rest] == list(range(2, MANY + 1))
    assert {process.status for process in rest} == {ProcessStatus.PENDING}


async def test_a_consistent_stream_in_the_callers_transaction(
    queries: Queries, repository: Repository, engine: AsyncEngine
) -> None:
    async with engine.connect() as conn, conn.begin() as transaction:
        await repository.save_many((numbered(number) for number in range(3)), conn)
        async with queries.stream(WANTED, conn, consistent=True) as stream:
            await anext(stream)
        assert (await queries.count(WANTED, conn)).value == 3
        await transaction.rollback()
    assert (await queries.count(WANTED)).value == 0
    async with engine.connect() as conn:
        autocommit: AsyncConnection = await conn.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidInputError, match="autocommit"):
            async with queries.stream(WANTED, autocommit, consistent=True):
                pass


@pytest.mark.parametrize("consistent", [False, True])
async def test_a_stream_on_an_aborted_connection_is_an_error(
    queries: Queries, engine: AsyncEngine, *, consistent: bool
) -> None:
    async with engine.connect() as conn:
        with pytest.raises(DBAPIError):
            await conn.execute(text("SELECT 1 / 0"))
        with pytest.raises(InvalidInputError, match="aborted"):
            async with queries.stream(WANTED, conn, consistent=consistent) as stream:
                await anext(stream)


class Numbered(BaseModel):
    number: int


async def test_states_are_of_their_type_and_can_be_written(repository: Repository, engine: AsyncEngine) -> None:
    await repository.save_many(map(numbered, range(3)))
    await repository.save(new_process())  # not of this type
    typed = PostgresProcessQueries(engine, state_type=Numbered)
    errors: list[Exception] = []
    async with typed.stream(WANTED, on_unreadable=errors.append) as stream:
        processes = [process async for process in stream]
    assert [process.state.number for process in processes] == [0, 1, 2]
    assert len(errors) == 1
    with pytest.raises(StoredStateError):
        async with typed.stream(WANTED) as stream:
            _ = [process async for process in stream]
    processes[0].state.number = 7
    await PostgresProcessRepository(engine, state_type=Numbered).update(processes[0])


@pytest.mark.parametrize("seed", range(8))
async def test_pages_miss_nothing_that_was_there_all_the_time(
    queries: Queries, repository: Repository, administrator: AsyncEngine, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    size = 150
    await repository.save_many(numbered(number, created_at=NOON) for number in range(size))
    gone: set[int] = set()
    changed: set[int] = set()
    seen: list[int] = []
    newest_first = chance.random() < 0.5
    after = None
    for round_ in range(1_000):
        page = await queries.page(WANTED, limit=chance.randint(1, 20), after=after, newest_first=newest_first)
        seen += [item.process_id.int - 1 for item in page.items]
        after = page.next
        if after is None:
            break
        victim = chance.randrange(size)
        number = size + round_
        await repository.save(
            numbered(number, created_at=NOON).model_copy(update={"process_id": UUID(int=10_000 - round_)})
        )
        async with administrator.begin() as connection:
            of_victim = process_table.c.process_id == UUID(int=victim + 1)
            if chance.random() < 0.5:
                await connection.execute(delete(process_table).where(of_victim))
                gone.add(victim)
            else:
                values = {"status": chance.choice(list(ProcessStatus)), "version": process_table.c.version + 1}
                await connection.execute(update(process_table).where(of_victim).values(values))
                changed.add(victim)
    assert len(seen) == len(set(seen))
    assert set(range(size)) - gone <= set(seen)
    assert gone
    assert changed
