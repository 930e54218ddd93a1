"""Plain SQLAlchemy Core: what an application writes without this library. Nothing is checked or retried."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import URL, Executable, RowMapping, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from benchmarks.data import CHANGED_COLUMNS, ENTRY_COLUMNS, REPLY_COLUMNS, Columns
from benchmarks.database import Database
from benchmarks.side import Side
from commandbus_process.tables import process, process_audit


class CoreRepository:
    """One statement for each method, in a transaction of its own if no connection is given."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def _write(self, statement: Executable, conn: AsyncConnection | None) -> int:
        if conn is None:
            async with self._engine.begin() as connection:
                return await self._write(statement, connection)
        return (await conn.execute(statement)).rowcount

    async def _read(self, statement: Executable, conn: AsyncConnection | None) -> Sequence[RowMapping]:
        if conn is None:
            async with self._engine.begin() as connection:
                return await self._read(statement, connection)
        return (await conn.execute(statement)).mappings().all()

    async def save(self, columns: Columns, conn: AsyncConnection | None = None) -> None:
        await self._write(insert(process).values(columns), conn)

    async def update(self, columns: Columns, conn: AsyncConnection | None = None) -> None:
        statement = (
            update(process)
            .where(
                process.c.domain == columns["domain"],
                process.c.process_id == columns["process_id"],
                process.c.version == columns["version"],
            )
            .values(
                {name: columns[name] for name in CHANGED_COLUMNS}
                | {"updated_at": func.now(), "version": process.c.version + 1}
            )
        )
        if not await self._write(statement, conn):
            raise LookupError(columns["process_id"])

    async def log_step(
        self, domain: str, process_id: UUID, entry: Columns, conn: AsyncConnection | None = None
    ) -> None:
        await self._write(insert(process_audit).values(domain=domain, process_id=process_id, **entry), conn)

    async def update_step_reply(
        self, domain: str, process_id: UUID, command_id: UUID, entry: Columns, conn: AsyncConnection | None = None
    ) -> None:
        statement = (
            update(process_audit)
            .where(
                process_audit.c.domain == domain,
                process_audit.c.process_id == process_id,
                process_audit.c.command_id == command_id,
            )
            .values({name: entry[name] for name in REPLY_COLUMNS})
        )
        if not await self._write(statement, conn):
            raise LookupError(command_id)

    async def get_by_id(self, domain: str, process_id: UUID, conn: AsyncConnection | None = None) -> Columns | None:
        statement = select(process).where(process.c.domain == domain, process.c.process_id == process_id)
        rows = await self._read(statement, conn)
        return dict(rows[0]) if rows else None

    async def find_by_status(
        self, domain: str, statuses: list[str], conn: AsyncConnection | None = None
    ) -> list[Columns]:
        statement = (
            select(process)
            .where(process.c.domain == domain, process.c.status.in_(statuses))
            .order_by(process.c.created_at, process.c.process_id)
        )
        return [dict(row) for row in await self._read(statement, conn)]

    async def get_audit_trail(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[Columns]:
        statement = (
            select(*(process_audit.c[name] for name in ENTRY_COLUMNS))
            .where(process_audit.c.domain == domain, process_audit.c.process_id == process_id)
            .order_by(process_audit.c.sent_at, process_audit.c.id)
        )
        return [dict(row) for row in await self._read(statement, conn)]

    async def get_completed_steps(
        self, domain: str, process_id: UUID, conn: AsyncConnection | None = None
    ) -> list[str]:
        statement = (
            select(process_audit.c.step_name)
            .where(
                process_audit.c.domain == domain,
                process_audit.c.process_id == process_id,
                process_audit.c.reply_outcome == "SUCCESS",
            )
            .order_by(process_audit.c.id)
        )
        return [row["step_name"] for row in await self._read(statement, conn)]

    async def advance(
        self, columns: Columns, conn: AsyncConnection | None = None, *, reply: Columns, sent: Columns
    ) -> None:
        if conn is None:
            async with self._engine.begin() as connection:
                await self.advance(columns, connection, reply=reply, sent=sent)
            return
        key = columns["domain"], columns["process_id"]
        await self.update_step_reply(*key, reply["command_id"], reply, conn)
        await self.log_step(*key, sent, conn)
        await self.update(columns, conn)


@asynccontextmanager
async def core(database: Database, url: URL, pool: int) -> AsyncGenerator[Side]:
    """Give plain statements of SQLAlchemy, on an engine with a pool of this size and no other settings."""
    engine = create_async_engine(url.set(drivername="postgresql+psycopg"), pool_size=pool, max_overflow=0)
    repository = CoreRepository(engine)

    async def add(processes: list[Columns], steps: list[tuple[Any, Any, Columns]], _conn: None) -> None:
        async with engine.begin() as connection:
            await connection.execute(insert(process), processes)
            rows = [{"domain": domain, "process_id": process_id, **entry} for domain, process_id, entry in steps]
            await connection.execute(insert(process_audit), rows)

    try:
        yield Side(
            name="core",
            database=database,
            pool=pool,
            repository=repository,
            transaction=engine.begin,
            process=lambda columns: columns,
            entry=lambda columns: {name: columns[name] for name in ENTRY_COLUMNS},
            status=str,
            change=lambda found, target: found | {name: target.changed[name] for name in CHANGED_COLUMNS},
            advance=repository.advance,
            insert=add,
        )
    finally:
        await engine.dispose()
