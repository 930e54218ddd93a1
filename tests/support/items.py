"""Processes and steps, also by the thousand, and counts of what is stored."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import ProcessAuditEntry, ProcessMetadata
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit

DOMAIN = "orders"
BATCH = 1_000  # how many items go with one statement at the most
LONGEST_TEXT = 1_000_000  # characters of the items of one statement, unless a single one is longer
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

ItemT = TypeVar("ItemT")
Step = tuple[str, UUID, ProcessAuditEntry]


def given_as(form: str, items: Iterable[ItemT]) -> Iterable[ItemT] | AsyncIterable[ItemT]:
    if form == "list":
        return list(items)
    return iter(items) if form == "generator" else asynchronous(items)


def for_process(domain: str, process_id: UUID, entries: Iterable[ProcessAuditEntry]) -> Iterable[Step]:
    """The entries as steps of one process: as a list, or as what gives one after the other."""
    steps = ((domain, process_id, entry) for entry in entries)
    return list(steps) if isinstance(entries, list) else steps


async def asynchronous(items: Iterable[ItemT]) -> AsyncGenerator[ItemT]:
    for item in items:
        await asyncio.sleep(0)
        yield item


def new_process(process_id: UUID | None = None) -> ProcessMetadata:
    return ProcessMetadata(
        domain=DOMAIN,
        process_id=process_id or uuid4(),
        process_type="order",
        state={"total": 12.5, "items": ["book", None, True]},
    )


def new_entry(step_name: str = "reserve", **changes: Any) -> ProcessAuditEntry:
    fields: dict[str, Any] = {"command_type": "Reserve", "command_data": {"quantity": 3}, "sent_at": NOON, **changes}
    return ProcessAuditEntry(step_name=step_name, command_id=uuid4(), **fields)


def bad_entry(**changes: object) -> ProcessAuditEntry:
    """An entry with values that it would not take itself."""
    return new_entry().model_copy(update=changes)


def bad_process(**changes: object) -> ProcessMetadata:
    return new_process().model_copy(update=changes)


def new_processes(number: int) -> Iterator[ProcessMetadata]:
    return (new_process() for _ in range(number))


def new_entries(number: int) -> Iterator[ProcessAuditEntry]:
    return (new_entry(f"step {position}") for position in range(number))


def step_names(entries: Iterable[ProcessAuditEntry]) -> list[str]:
    return [entry.step_name for entry in entries]


async def numbers(engine: AsyncEngine) -> tuple[int, int]:
    """How many processes and how many entries there are."""
    async with engine.connect() as connection:
        processes = (await connection.execute(select(func.count()).select_from(process_table))).scalar_one()
        entries = (await connection.execute(select(func.count()).select_from(process_audit))).scalar_one()
        return processes, entries


class Statements:
    """The statements that an engine has sent since, and how many it is waiting for."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.in_flight = 0
        event.listen(engine.sync_engine, "before_cursor_execute", self._begun)
        event.listen(engine.sync_engine, "after_cursor_execute", self._ended)

    def _begun(self, _connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        self.sent.append((statement, dict(parameters or {})))
        self.in_flight += 1

    def _ended(self, *_: object) -> None:
        self.in_flight -= 1

    @property
    def writing(self) -> list[dict[str, Any]]:
        """The parameters of those that insert."""
        return [parameters for statement, parameters in self.sent if "INSERT INTO" in statement]
