"""However many items there are, two batches of them are in memory: those that are alive are counted, not the bytes."""

import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeVar

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata
from tests.support.items import (
    BATCH,
    DOMAIN,
    LONGEST_TEXT,
    asynchronous,
    bad_entry,
    for_process,
    new_entry,
    new_process,
    new_processes,
    numbers,
)

MANY = 40 * BATCH
FEW = 8 * BATCH  # enough to tell a bound from none
Repository = PostgresProcessRepository[JsonObject]
Connection = AsyncConnection | None
ItemT = TypeVar("ItemT", bound=BaseModel)


class Living:
    """How many of the items that were made are still alive, and how many there ever were at once."""

    def __init__(self) -> None:
        self._now = 0
        self.most = 0

    def each(self, number: int, make: Callable[[], ItemT]) -> Iterator[ItemT]:
        for _ in range(number):
            yield self._watched(make())

    def _watched(self, item: ItemT) -> ItemT:
        self._now += 1
        self.most = max(self.most, self._now)
        weakref.finalize(item, self._gone)
        return item

    def _gone(self) -> None:
        self._now -= 1


@pytest.fixture
def living() -> Living:
    return Living()


async def test_of_many_entries_few_are_alive(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata, living: Living
) -> None:
    await repository.save(process)
    assert await repository.log_many(for_process(DOMAIN, process.process_id, living.each(MANY, new_entry))) == MANY
    assert BATCH < living.most <= 2 * BATCH + 10
    assert await numbers(engine) == (1, MANY)


async def test_of_many_entries_of_an_asynchronous_generator_few_are_alive(
    repository: Repository, conn: Connection, process: ProcessMetadata, living: Living
) -> None:
    await repository.save(process, conn)
    steps = asynchronous(for_process(DOMAIN, process.process_id, living.each(FEW, new_entry)))
    assert await repository.log_many(steps, conn) == FEW
    assert BATCH < living.most <= 2 * BATCH + 10


async def test_of_many_entries_that_are_delivered_again_few_are_alive(
    repository: Repository, conn: Connection, process: ProcessMetadata, living: Living
) -> None:
    await repository.save(process, conn)
    entry = new_entry()
    await repository.log_step(DOMAIN, process.process_id, entry, conn)
    entries = chain([entry], living.each(FEW, new_entry))
    assert await repository.log_many(for_process(DOMAIN, process.process_id, entries), conn) == FEW
    assert BATCH < living.most <= 2 * BATCH + 10


async def test_of_many_steps_few_are_alive(repository: Repository, conn: Connection, living: Living) -> None:
    processes = list(new_processes(10))
    await repository.save_many(processes, conn)
    entries = enumerate(living.each(FEW, new_entry))
    steps = ((DOMAIN, processes[number % 10].process_id, entry) for number, entry in entries)
    assert await repository.log_many(steps, conn) == FEW
    assert BATCH < living.most <= 2 * BATCH + 10


async def test_of_many_processes_few_are_alive(repository: Repository, conn: Connection, living: Living) -> None:
    assert await repository.save_many(living.each(FEW, new_process), conn) == FEW
    assert BATCH < living.most <= 2 * BATCH + 10


LONG = {"text": "x" * 100_000}
AT_ONCE = LONGEST_TEXT // 100_000  # in one batch


async def test_of_long_entries_fewer_are_alive(
    repository: Repository, conn: Connection, process: ProcessMetadata, living: Living
) -> None:
    await repository.save(process, conn)
    entries = living.each(200, lambda: bad_entry(command_data=LONG))
    assert await repository.log_many(for_process(DOMAIN, process.process_id, entries), conn) == 200
    assert AT_ONCE / 2 < living.most <= 2 * AT_ONCE + 10


async def test_of_long_replies_fewer_are_alive(
    repository: Repository, process: ProcessMetadata, living: Living
) -> None:
    await repository.save(process)
    entries = living.each(200, lambda: bad_entry(reply_outcome="SUCCESS", reply_data=LONG))
    assert await repository.log_many(for_process(DOMAIN, process.process_id, entries)) == 200
    assert AT_ONCE / 2 < living.most <= 2 * AT_ONCE + 10


async def test_of_long_processes_fewer_are_alive(repository: Repository, conn: Connection, living: Living) -> None:
    processes = living.each(200, lambda: new_process().model_copy(update={"state": LONG}))
    assert await repository.save_many(processes, conn) == 200
    assert AT_ONCE / 2 < living.most <= 2 * AT_ONCE + 10
