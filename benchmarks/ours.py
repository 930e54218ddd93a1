"""The side that is measured: this library."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.data import ENTRY_COLUMNS, Columns
from benchmarks.database import Database
from benchmarks.side import Side
from commandbus_process import JsonObject, PostgresProcessRepository, ProcessAuditEntry, ProcessMetadata, ProcessStatus


def _entry(columns: Columns) -> ProcessAuditEntry:
    return ProcessAuditEntry(**{name: columns[name] for name in ENTRY_COLUMNS})


@asynccontextmanager
async def ours(database: Database, url: URL, pool: int) -> AsyncGenerator[Side]:
    """Give the library's repository, on an engine with a pool of this size and no other settings."""
    engine = create_async_engine(url.set(drivername="postgresql+psycopg"), pool_size=pool, max_overflow=0)
    repository = PostgresProcessRepository(engine)

    async def insert(
        processes: list[ProcessMetadata[JsonObject]], steps: list[tuple[str, UUID, ProcessAuditEntry]], _conn: None
    ) -> None:
        await repository.save_many(processes)
        await repository.log_many(steps)

    try:
        yield Side(
            name="ours",
            database=database,
            pool=pool,
            repository=repository,
            transaction=engine.begin,
            process=lambda columns: ProcessMetadata[JsonObject](**columns),
            entry=_entry,
            status=ProcessStatus,
            advance=repository.advance,
            insert=insert,
        )
    finally:
        await engine.dispose()
