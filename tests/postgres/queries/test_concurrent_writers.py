"""Pages and streams beside writers that never pause: what was there throughout comes, and nothing comes twice."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessFilter,
    ProcessMetadata,
    ProcessStatus,
)
from commandbus_process.tables import process as process_table
from tests.support.items import NOON

SIZE = 120
SECONDS = 6  # the processes have so many creation times, so most of them have the time of many others
WRITERS = 2
PATIENCE = 30  # seconds
Way = Literal["pages", "stream", "consistent stream"]


@dataclass
class Writers:
    """What the writers have done to the processes."""

    domain: str
    deleted: set[UUID] = field(default_factory=set[UUID])
    changes: int = 0
    have_begun: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False


def some_process(domain: str, chance: random.Random) -> ProcessMetadata:
    return ProcessMetadata(
        domain=domain,
        process_id=UUID(int=chance.getrandbits(128), version=4),
        process_type="order",
        status=chance.choice(list(ProcessStatus)),
        state={},
        created_at=NOON + timedelta(seconds=chance.randrange(SECONDS)),
    )


async def write(engine: AsyncEngine, writers: Writers, ids: list[UUID], seed: int) -> None:
    """Insert, change and delete, until it is over."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    repository = PostgresProcessRepository(engine)
    while not writers.is_over:
        which = process_table.c.process_id == chance.choice(ids)
        kind = chance.choice(["insert", "change", "change", "delete"])
        if kind == "insert":
            await repository.save(some_process(writers.domain, chance))
        elif kind == "change":
            status = chance.choice(list(ProcessStatus))
            async with engine.begin() as connection:
                values = {"status": status, "version": process_table.c.version + 1}
                await connection.execute(update(process_table).where(which).values(values))
        else:
            async with engine.begin() as connection:
                statement = delete(process_table).where(which).returning(process_table.c.process_id)
                writers.deleted.update(await connection.scalars(statement))
        writers.changes += 1
        writers.have_begun.set()


@asynccontextmanager
async def writing(engine: AsyncEngine, domain: str, ids: list[UUID], seed: int) -> AsyncGenerator[Writers]:
    writers = Writers(domain)
    async with asyncio.TaskGroup() as group:  # a writer that fails ends the test
        for number in range(1, WRITERS + 1):
            group.create_task(write(engine, writers, ids, seed + number))
        await writers.have_begun.wait()
        yield writers
        writers.is_over = True


async def read(engine: AsyncEngine, way: Way, wanted: ProcessFilter, size: int, *, newest_first: bool) -> list[UUID]:
    queries = PostgresProcessQueries(engine)
    if way != "pages":
        consistent = way == "consistent stream"
        async with queries.stream(wanted, consistent=consistent, newest_first=newest_first) as stream:
            return [process.process_id async for process in stream]
    page = await queries.page(wanted, limit=size, newest_first=newest_first)
    seen = [item.process_id for item in page.items]
    while page.next is not None:
        page = await queries.page(wanted, limit=size, after=page.next, newest_first=newest_first)
        seen += [item.process_id for item in page.items]
    return seen


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # what other tasks do meanwhile is not repeated, so nothing can be shrunk
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32),
    way=st.sampled_from(["pages", "stream", "consistent stream"]),
    size=st.integers(1, 25),
    newest_first=st.booleans(),
)
async def test_nothing_is_missed_that_was_there_throughout_and_nothing_comes_twice(
    administrator: AsyncEngine, *, seed: int, way: Way, size: int, newest_first: bool
) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    domain = f"orders-{uuid4()}"
    there = [some_process(domain, chance) for _ in range(SIZE)]
    ids = [process.process_id for process in there]
    await PostgresProcessRepository(administrator).save_many(there)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commandbus_process.postgres._queries.BATCH", size)  # so that a stream has many pages
        patch.setattr("commandbus_process.postgres._stream.BATCH", size)
        async with asyncio.timeout(PATIENCE), writing(administrator, domain, ids, seed) as writers:
            deleted_before, changes_before = set(writers.deleted), writers.changes
            seen = await read(administrator, way, ProcessFilter(domain=domain), size, newest_first=newest_first)
            deleted, changes = set(writers.deleted), writers.changes
    assert len(seen) == len(set(seen))
    assert set(ids) - deleted <= set(seen)
    assert not deleted_before & set(seen)
    if size < SIZE // 10:
        assert changes > changes_before
