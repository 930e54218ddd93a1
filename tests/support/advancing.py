"""Processes that wait for a reply, and steps for `advance`."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)
from tests.support.items import new_process

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = timedelta(days=1)
RACERS = 4
Repository = PostgresProcessRepository[JsonObject]

# What the tables hold, and the place of each row: writing the same values again moves it.
EVERYTHING = text(
    "SELECT 'process', ctid::text, each::text FROM commandbus.process AS each "
    "UNION ALL SELECT 'step', ctid::text, each::text FROM commandbus.process_audit AS each ORDER BY 1, 2"
)


def new_command(step_name: str = "charge", **changes: object) -> ProcessAuditEntry:
    entry = ProcessAuditEntry(
        step_name="charge", command_id=uuid4(), command_type="Do", command_data={"amount": 42.5}, sent_at=NOON
    )
    return entry.model_copy(update={"step_name": step_name, **changes})


def reply_to(entry: ProcessAuditEntry, **changes: object) -> ProcessAuditEntry:
    reply = ProcessAuditEntry(
        step_name="reply",
        command_id=entry.command_id,
        reply_outcome=ReplyOutcome.SUCCESS,
        reply_data={"reserved": 3},
        received_at=NOON + timedelta(minutes=5),
    )
    return reply.model_copy(update=changes)


def answered(entry: ProcessAuditEntry, reply: ProcessAuditEntry) -> ProcessAuditEntry:
    """The entry as it is stored once its reply is recorded."""
    return entry.model_copy(
        update={name: getattr(reply, name) for name in ("reply_outcome", "reply_data", "received_at")}
    )


@dataclass
class Waiting:
    """A process at version 2 that waits for the reply to one command, and has had the one to another.

    Attributes:
        conn: The connection that the process was made on, and that the test passes on.
        asked: The command that nobody has replied to.
        done: The command with its reply.
    """

    repository: Repository
    engine: AsyncEngine
    conn: AsyncConnection | None
    process: ProcessMetadata = field(default_factory=new_process)
    asked: ProcessAuditEntry = field(default_factory=lambda: new_command("reserve"))
    done: ProcessAuditEntry = field(default_factory=lambda: new_command("check"))

    def __post_init__(self) -> None:
        self.done = answered(self.done, reply_to(self.done))

    def next(self, **changes: object) -> ProcessMetadata:
        """Another worker's copy of the process, as it is to be after the step."""
        after: dict[str, object] = {
            "status": ProcessStatus.COMPENSATING,
            "current_step": "charge",
            "state": {"total": 13, "text": "é\n"},
            "error_code": "DECLINED",
            "error_message": "the card was declined",
            "completed_at": NOON + timedelta(hours=1),
        }
        return self.process.model_copy(deep=True, update=after | changes)

    @property
    def key(self) -> tuple[str, UUID]:
        return self.process.domain, self.process.process_id

    async def select(self, statement: str) -> list[dict[str, Any]]:
        """Read with SQL of the test's own."""
        if self.conn is not None:
            return [dict(row) for row in (await self.conn.execute(text(statement))).mappings()]
        async with self.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(text(statement))).mappings()]

    async def everything(self) -> list[dict[str, Any]]:
        return await self.select(EVERYTHING.text)

    async def trail(self) -> list[ProcessAuditEntry]:
        return await self.repository.get_audit_trail(*self.key, self.conn)


async def waiting_process(repository: Repository, engine: AsyncEngine, conn: AsyncConnection | None) -> Waiting:
    made = Waiting(repository, engine, conn)
    await repository.save(made.process, conn)
    await repository.update(made.process, conn)
    for entry in (made.done, made.asked):
        await repository.log_step(*made.key, entry, conn)
    return made


@pytest.fixture
async def waiting(repository: Repository, engine: AsyncEngine, conn: AsyncConnection | None) -> Waiting:
    """For a test that runs with the caller's connection and without one."""
    return await waiting_process(repository, engine, conn)


@pytest.fixture
async def committed(repository: Repository, engine: AsyncEngine) -> Waiting:
    """For a test in which others see the process too."""
    return await waiting_process(repository, engine, None)


SHAPES: dict[str, tuple[bool, list[str]]] = {
    "a reply and a command": (True, ["charge"]),
    "a reply and three commands": (True, ["ship", "charge", "notify"]),
    "a reply": (True, []),
    "a command": (False, ["charge"]),
    "two commands": (False, ["ship", "charge"]),
    "neither": (False, []),
}
