"""What the tests of the contract begin with: processes, entries, replies, and a process that waits for a reply."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process.models import (
    JsonObject,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)
from commandbus_process.repository import ProcessRepository

DOMAIN = "orders"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = timedelta(days=1)
ODD_TEXT = "\"'`\\ \\u0000 \\\\u0000 \\x00 \u2028\u2029 \x01\x1f\x7f é e\u0301 😀 null {} [1]"

ItemT = TypeVar("ItemT")
Repository: TypeAlias = ProcessRepository[JsonObject]
Connection: TypeAlias = AsyncConnection | None
Step: TypeAlias = tuple[str, UUID, ProcessAuditEntry]


def new_process(process_id: UUID | None = None, *, domain: str = DOMAIN) -> ProcessMetadata:
    return ProcessMetadata(
        domain=domain,
        process_id=process_id or uuid4(),
        process_type="order",
        state={"total": 12.5, "items": ["book", None, True]},
    )


def sent(step_name: str = "reserve", *, at: datetime = NOON, command_id: UUID | None = None) -> ProcessAuditEntry:
    return ProcessAuditEntry(
        step_name=step_name,
        command_id=command_id or uuid4(),
        command_type="ReserveStock",
        command_data={"quantity": 3},
        sent_at=at,
    )


def new_entry(step_name: str = "reserve", **changes: object) -> ProcessAuditEntry:
    return sent(step_name).model_copy(update=changes)


def new_command(step_name: str = "charge", **changes: object) -> ProcessAuditEntry:
    return new_entry(step_name, **{"command_data": {"amount": 42.5}, **changes})


def reply(
    to: ProcessAuditEntry, outcome: ReplyOutcome = ReplyOutcome.SUCCESS, *, at: datetime = NOON + timedelta(minutes=5)
) -> ProcessAuditEntry:
    return ProcessAuditEntry(
        step_name="reply",
        command_id=to.command_id,
        reply_outcome=outcome,
        reply_data={"reserved": 3},
        received_at=at,
    )


def reply_to(entry: ProcessAuditEntry, **changes: object) -> ProcessAuditEntry:
    return reply(entry).model_copy(update=changes)


def answered(entry: ProcessAuditEntry, by: ProcessAuditEntry) -> ProcessAuditEntry:
    """The entry as it is stored once its reply is recorded."""
    return entry.model_copy(update={name: getattr(by, name) for name in ("reply_outcome", "reply_data", "received_at")})


def given_as(form: str, items: Iterable[ItemT]) -> Iterable[ItemT] | AsyncIterable[ItemT]:
    if form == "list":
        return list(items)
    return iter(items) if form == "generator" else asynchronous(items)


async def asynchronous(items: Iterable[ItemT]) -> AsyncIterator[ItemT]:
    for item in items:
        yield item


def for_process(domain: str, process_id: UUID, entries: Iterable[ProcessAuditEntry]) -> list[Step]:
    return [(domain, process_id, entry) for entry in entries]


async def logged(repository: Repository, process: ProcessMetadata, entry: ProcessAuditEntry, conn: Connection) -> None:
    await repository.save(process, conn)
    await repository.log_step(process.domain, process.process_id, entry, conn)


@dataclass
class Waiting:
    """A process at version 2 that waits for the reply to one command, and has had the one to another.

    Attributes:
        conn: The connection that the process was made on, and that the test passes on.
        asked: The command that nobody has replied to.
        done: The command with its reply.
    """

    repository: Repository
    conn: Connection
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

    async def trail(self) -> list[ProcessAuditEntry]:
        return await self.repository.get_audit_trail(*self.key, self.conn)

    async def everything(self) -> tuple[Any, ...]:
        """What is stored of the process."""
        return await self.repository.get_by_id(*self.key, self.conn), await self.trail()

    async def begin(self) -> None:
        """Store the process and its two commands."""
        await self.repository.save(self.process, self.conn)
        await self.repository.update(self.process, self.conn)
        for entry in (self.done, self.asked):
            await self.repository.log_step(*self.key, entry, self.conn)


class Given:
    """The fixtures of every group. A subclass adds `repository`, and may replace `conn`."""

    @pytest.fixture
    def conn(self) -> Connection:
        """What every test passes as `conn`. Replace it to run the tests in a transaction."""
        return None

    @pytest.fixture
    def process(self) -> ProcessMetadata:
        """A process that is not saved."""
        return new_process()

    @pytest.fixture
    def waiting(self, repository: Repository, conn: Connection) -> Waiting:
        """A process that will wait for a reply. A test begins with `await waiting.begin()`.

        The fixture does not store it, because each plugin has its own way to declare an asynchronous fixture.
        """
        return Waiting(repository, conn)
