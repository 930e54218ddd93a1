"""The reference: the repository of reliable-cmd, hand-written SQL over psycopg. It declares no types."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from commandbus.models import ReplyOutcome  # type: ignore[import-untyped]
from commandbus.process import (  # type: ignore[import-untyped]
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
)
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import URL

from benchmarks.data import ENTRY_COLUMNS, Columns
from benchmarks.database import Database, driver_url
from benchmarks.side import CONNECTION_TIMEOUT, Entry, Process, Side


def _process(columns: Columns) -> Process:
    values: Columns = {**columns, "status": ProcessStatus(columns["status"])}
    return ProcessMetadata(**values)


def _entry(columns: Columns) -> Entry:
    values: Columns = {name: columns[name] for name in ENTRY_COLUMNS}
    outcome = values["reply_outcome"]
    values["reply_outcome"] = None if outcome is None else ReplyOutcome(outcome)
    return ProcessAuditEntry(**values)


@asynccontextmanager
async def reference(database: Database, url: URL, pool: int) -> AsyncGenerator[Side]:
    """Give the reference's repository, on a pool of this size and no other settings."""
    async with AsyncConnectionPool[AsyncConnection[Any]](
        driver_url(url), min_size=pool, max_size=pool, open=False
    ) as connections:
        await connections.wait(CONNECTION_TIMEOUT)
        repository = PostgresProcessRepository(connections)

        async def advance(
            process: Process, conn: AsyncConnection[Any] | None = None, *, reply: Entry, sent: Entry
        ) -> None:
            if conn is None:
                async with connections.connection() as connection:
                    await advance(process, connection, reply=reply, sent=sent)
                return
            await repository.update_step_reply(process.domain, process.process_id, reply.command_id, reply, conn)
            await repository.log_step(process.domain, process.process_id, sent, conn)
            await repository.update(process, conn)

        async def insert(processes: list[Process], steps: list[tuple[Any, Any, Entry]], _conn: None) -> None:
            async with connections.connection() as connection:
                for process in processes:
                    await repository.save(process, connection)
                for domain, process_id, entry in steps:
                    await repository.log_step(domain, process_id, entry, connection)

        yield Side(
            name="reference",
            database=database,
            pool=pool,
            repository=repository,
            transaction=connections.connection,
            process=_process,
            entry=_entry,
            status=ProcessStatus,
            advance=advance,
            insert=insert,
        )
