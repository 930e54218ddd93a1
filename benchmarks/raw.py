"""The floor: the least that psycopg can do the same work with. No models, no checks, no errors of its own."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import URL

from benchmarks.data import CHANGED_COLUMNS, ENTRY_COLUMNS, PROCESS_COLUMNS, REPLY_COLUMNS, STEP_COLUMNS, Columns
from benchmarks.database import Database, copy_statement, driver_url
from benchmarks.side import CONNECTION_TIMEOUT, Side

RawConnection: TypeAlias = AsyncConnection[DictRow]

# Parameters are in the order of the columns in data.py.
_SAVE = b"""
    INSERT INTO commandbus.process (
        domain, process_id, process_type, status, current_step, state, error_code, error_message, completed_at,
        created_at, updated_at
    ) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_UPDATE = b"""
    UPDATE commandbus.process
    SET status = %s, current_step = %s, state = %s, error_code = %s, error_message = %s, completed_at = %s,
        updated_at = now(), version = version + 1
    WHERE domain = %s AND process_id = %s
"""
_UPDATE_IF_UNCHANGED = _UPDATE + b" AND version = %s"
_LOG_STEP = b"""
    INSERT INTO commandbus.process_audit (
        domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data,
        received_at
    ) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_RECORD_REPLY = b"""
    UPDATE commandbus.process_audit SET reply_outcome = %s, reply_data = %s, received_at = %s
    WHERE domain = %s AND process_id = %s AND command_id = %s
"""
_GET_BY_ID = b"SELECT * FROM commandbus.process WHERE domain = %s AND process_id = %s"
_FIND_BY_STATUS = b"""
    SELECT * FROM commandbus.process WHERE domain = %s AND status = ANY(%s) ORDER BY created_at, process_id
"""
_AUDIT_TRAIL = b"""
    SELECT step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, received_at
    FROM commandbus.process_audit WHERE domain = %s AND process_id = %s ORDER BY sent_at, id
"""
_COMPLETED_STEPS = b"""
    SELECT step_name FROM commandbus.process_audit
    WHERE domain = %s AND process_id = %s AND reply_outcome = 'SUCCESS' ORDER BY sent_at, id
"""

# Of the columns of a COPY in binary form, where the server converts nothing.
_PROCESS_TYPES = ("varchar", "uuid", *("varchar",) * 3, "jsonb", "varchar", "text", *("timestamptz",) * 3)
_STEP_TYPES = (
    *("varchar", "uuid", "varchar", "uuid", "varchar"),
    *("jsonb", "timestamptz", "varchar", "jsonb", "timestamptz"),
)


class RawRepository:
    """One statement for each method, on connections in autocommit; the schema is this library's."""

    def __init__(self, pool: AsyncConnectionPool[RawConnection]) -> None:
        self._pool = pool

    async def _run(self, statement: bytes, values: Sequence[object], conn: RawConnection | None) -> list[DictRow]:
        if conn is None:
            async with self._pool.connection() as connection:
                return await self._run(statement, values, connection)
        cursor = await conn.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []

    async def save(self, process: Columns, conn: RawConnection | None = None) -> None:
        await self._run(_SAVE, _values(process, PROCESS_COLUMNS), conn)

    async def update(self, process: Columns, conn: RawConnection | None = None) -> None:
        await self._run(_UPDATE, [*_values(process, CHANGED_COLUMNS), process["domain"], process["process_id"]], conn)

    async def log_step(self, domain: str, process_id: UUID, entry: Columns, conn: RawConnection | None = None) -> None:
        await self._run(_LOG_STEP, [domain, process_id, *_values(entry, ENTRY_COLUMNS)], conn)

    async def update_step_reply(
        self, domain: str, process_id: UUID, command_id: UUID, entry: Columns, conn: RawConnection | None = None
    ) -> None:
        await self._run(_RECORD_REPLY, [*_values(entry, REPLY_COLUMNS), domain, process_id, command_id], conn)

    async def get_by_id(self, domain: str, process_id: UUID, conn: RawConnection | None = None) -> DictRow | None:
        rows = await self._run(_GET_BY_ID, (domain, process_id), conn)
        return rows[0] if rows else None

    async def find_by_status(
        self, domain: str, statuses: list[str], conn: RawConnection | None = None
    ) -> list[DictRow]:
        return await self._run(_FIND_BY_STATUS, (domain, statuses), conn)

    async def get_audit_trail(self, domain: str, process_id: UUID, conn: RawConnection | None = None) -> list[DictRow]:
        return await self._run(_AUDIT_TRAIL, (domain, process_id), conn)

    async def get_completed_steps(self, domain: str, process_id: UUID, conn: RawConnection | None = None) -> list[str]:
        return [row["step_name"] for row in await self._run(_COMPLETED_STEPS, (domain, process_id), conn)]

    async def advance(
        self, process: Columns, conn: RawConnection | None = None, *, reply: Columns, sent: Columns
    ) -> None:
        if conn is None:
            async with self._pool.connection() as connection, connection.transaction():
                await self.advance(process, connection, reply=reply, sent=sent)
            return
        key = process["domain"], process["process_id"]
        await self.update_step_reply(*key, reply["command_id"], reply, conn)
        await self.log_step(*key, sent, conn)
        await conn.execute(_UPDATE_IF_UNCHANGED, [*_values(process, CHANGED_COLUMNS), *key, process["version"]])


def _values(row: Columns, columns: Sequence[str]) -> list[object]:
    return [Jsonb(value) if isinstance(value := row[name], dict) else value for name in columns]


@asynccontextmanager
async def raw(database: Database, url: URL, pool: int) -> AsyncGenerator[Side]:
    """Give plain statements, on a pool of this size."""
    options: dict[str, Any] = {"autocommit": True, "row_factory": dict_row}
    async with AsyncConnectionPool[RawConnection](
        driver_url(url), kwargs=options, min_size=pool, max_size=pool, open=False
    ) as connections:
        await connections.wait(CONNECTION_TIMEOUT)
        repository = RawRepository(connections)

        @asynccontextmanager
        async def transaction() -> AsyncGenerator[RawConnection]:
            async with connections.connection() as connection, connection.transaction():
                yield connection

        async def insert(processes: list[Columns], steps: list[tuple[Any, Any, Columns]], _conn: None) -> None:
            async with transaction() as connection, connection.cursor() as cursor:
                async with cursor.copy(copy_statement("process", PROCESS_COLUMNS, "binary")) as copy:
                    copy.set_types(_PROCESS_TYPES)
                    for process in processes:
                        await copy.write_row(_values(process, PROCESS_COLUMNS))
                async with cursor.copy(copy_statement("process_audit", STEP_COLUMNS, "binary")) as copy:
                    copy.set_types(_STEP_TYPES)
                    for domain, process_id, entry in steps:
                        await copy.write_row([domain, process_id, *_values(entry, ENTRY_COLUMNS)])

        yield Side(
            name="raw",
            database=database,
            pool=pool,
            repository=repository,
            transaction=transaction,
            process=lambda columns: columns,
            entry=lambda columns: columns,
            status=str,
            change=lambda process, target: process | target.changed,
            advance=repository.advance,
            insert=insert,
        )
