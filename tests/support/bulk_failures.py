"""Items that break off, and a process that is there already, for the tests of the bulk methods."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Table, Text, cast, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    InvalidInputError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessNotFoundError,
    StepAlreadyLoggedError,
)
from commandbus_process.tables import process as process_table
from tests.support.items import (
    BATCH,
    DOMAIN,
    Step,
    bad_entry,
    bad_process,
    for_process,
    new_entries,
    new_entry,
    new_process,
    new_processes,
)

Repository = PostgresProcessRepository
Connection = AsyncConnection | None


async def stored(engine: AsyncEngine, table: Table, domain: str) -> list[tuple[Any, ...]]:
    """All columns that a domain's rows can have in common with another's."""
    columns = [cast(column, Text) for column in table.c if column.name not in {"domain", "id"}]
    order = table.c.process_id if table is process_table else table.c.id
    async with engine.connect() as connection:
        statement = select(*columns).where(table.c.domain == domain).order_by(order)
        return [tuple(row) for row in await connection.execute(statement)]


# All or nothing.


class CallersError(Exception):
    """What the caller's own code raises."""


@dataclass
class Known:
    """A process with one step, in the database."""

    repository: Repository
    process: ProcessMetadata
    entry: ProcessAuditEntry

    @property
    def key(self) -> tuple[str, UUID]:
        return DOMAIN, self.process.process_id

    def save(self, conn: Connection, last: Iterable[ProcessMetadata]) -> Awaitable[int]:
        """Save two batches and a part of the third, with something at its end that cannot be saved."""
        return self.repository.save_many(chain(new_processes(2 * BATCH), last), conn)

    def log(self, conn: Connection, last: Iterable[ProcessAuditEntry]) -> Awaitable[int]:
        # What is given again begins another batch.
        first, second, third = new_entries(3)
        return self.repository.log_many(for_process(*self.key, chain((first, second, first, third, first), last)), conn)

    def log_of_many(self, conn: Connection, last: Iterable[Step]) -> Awaitable[int]:
        steps = ((*self.key, entry) for entry in new_entries(2 * BATCH))
        return self.repository.log_many(chain(steps, last), conn)


@pytest.fixture
async def known(repository: Repository, process: ProcessMetadata) -> Known:
    entry = new_entry()
    await repository.save(process)
    await repository.log_step(DOMAIN, process.process_id, entry)
    return Known(repository, process, entry)


def break_off(item: Callable[[], Any]) -> Iterator[Any]:
    yield item()
    raise CallersError


NOT_A_NUMBER = {"total": float("nan")}


def note(seen: list[str], name: str) -> Callable[..., None]:
    return lambda *_: seen.append(name)


# Cancellation.


async def run(operation: Awaitable[None]) -> None:
    await operation


Failure = Callable[[Known, Connection], Awaitable[int]]
FAILURES: dict[str, tuple[type[Exception], Failure]] = {
    "a taken id": (
        ProcessAlreadyExistsError,
        lambda known, conn: known.save(conn, [new_process(), new_process(known.process.process_id)]),
    ),
    "a process that cannot be stored": (
        InvalidInputError,
        lambda known, conn: known.save(conn, [bad_process(state=NOT_A_NUMBER)]),
    ),
    "the caller's own error among processes": (
        CallersError,
        lambda known, conn: known.save(conn, break_off(new_process)),
    ),
    "another entry's command": (
        StepAlreadyLoggedError,
        lambda known, conn: known.log(conn, [known.entry.model_copy(update={"step_name": "other"})]),
    ),
    "an entry that cannot be stored": (
        InvalidInputError,
        lambda known, conn: known.log(conn, [bad_entry(command_data=NOT_A_NUMBER)]),
    ),
    "the caller's own error among entries": (CallersError, lambda known, conn: known.log(conn, break_off(new_entry))),
    "an unknown process": (
        ProcessNotFoundError,
        lambda known, conn: known.log_of_many(conn, [(DOMAIN, uuid4(), new_entry())]),
    ),
}
