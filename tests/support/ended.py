"""Processes that have ended, with their steps, and what is left of them."""

from collections.abc import AsyncIterable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessRetention,
    ProcessStatus,
    ProcessWithTrail,
    PurgeProgress,
    ReplyOutcome,
)
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit
from tests.support.items import DOMAIN

END = datetime(2026, 6, 1, tzinfo=UTC)
"""What ended before this is purged."""


def days(number: float) -> timedelta:
    return timedelta(days=number)


def ended(created: float = 90, ended: float | None = 60, **changes: Any) -> ProcessMetadata:
    """A process that was created and ended so many days before END. Without an end, it has no time of completion."""
    completed_at = None if ended is None else END - days(ended)
    fields: dict[str, Any] = {
        "domain": DOMAIN,
        "process_id": uuid4(),
        "process_type": "order",
        "status": ProcessStatus.COMPLETED,
        "state": {"customer": "Ada"},
        "created_at": END - days(created),
        "updated_at": completed_at or END,
        "completed_at": completed_at,
        "business_key": "order 7",
        "error_message": "Ada has moved",
        **changes,
    }
    return ProcessMetadata(**fields)


def steps(number: int) -> list[ProcessAuditEntry]:
    return [
        ProcessAuditEntry(
            step_name=f"step {position}",
            command_id=uuid4(),
            command_type="Do",
            command_data={"customer": "Ada"},
            sent_at=END - days(80),
            reply_outcome=ReplyOutcome.SUCCESS,
            reply_data={"street": "Main"},
            received_at=END - days(79),
        )
        for position in range(number)
    ]


async def store(engine: AsyncEngine, processes: Iterable[ProcessMetadata], number: int = 2) -> None:
    """Save processes, each with this number of steps."""
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine)
    given = list(processes)
    await repository.save_many(given)
    await repository.log_many([(each.domain, each.process_id, entry) for each in given for entry in steps(number)])


async def left(engine: AsyncEngine) -> set[UUID]:
    """The ids of the processes that are stored."""
    async with engine.connect() as connection:
        return set((await connection.execute(select(process_table.c.process_id))).scalars())


async def steps_by_process(engine: AsyncEngine) -> dict[UUID, int]:
    statement = select(process_audit.c.process_id, func.count()).group_by(process_audit.c.process_id)
    async with engine.connect() as connection:
        return {row[0]: row[1] for row in await connection.execute(statement)}


async def last(purge: AsyncIterable[PurgeProgress]) -> PurgeProgress:
    """Go through a purge, and return its last progress."""
    progress: PurgeProgress | None = None
    async for each in purge:
        progress = each
    assert progress is not None
    return progress


async def retain(purger: AsyncEngine, administrator: AsyncEngine) -> None:
    """Call every method of the retention, and check that each did its work."""
    retention = ProcessRetention(purger)
    to_erase, to_purge = ended(ended=-1), ended()
    await store(administrator, [to_erase, to_purge])
    assert await retention.erase(DOMAIN, to_erase.process_id)
    archived: list[ProcessWithTrail] = []

    async def archive(_conn: AsyncConnection, batch: list[ProcessWithTrail]) -> None:
        archived.extend(batch)

    [previewed] = await retention.preview(DOMAIN, ended_before=END)
    purged = await last(retention.purge(DOMAIN, ended_before=END, before_delete=archive))
    assert (previewed.processes, previewed.steps, len(archived)) == (1, 2, 1)
    assert purged == PurgeProgress(1, 2, None)
    assert await last(retention.purge(DOMAIN, ended_before=END + days(9))) == PurgeProgress(1, 2, None)
