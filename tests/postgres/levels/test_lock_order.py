"""Every writer locks the process, then its steps: no two of them wait for each other."""

import asyncio
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    DeadlockError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    StepReply,
)
from tests.support.items import DOMAIN, new_process
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository[JsonObject]


async def asked(repository: Repository) -> tuple[ProcessMetadata, StepReply]:
    process = new_process()
    entry = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve")
    await repository.save(process, sent=entry)
    return process, StepReply(entry.command_id, ReplyOutcome.SUCCESS)


async def test_a_reply_delivered_twice_to_one_who_claims_and_one_who_does_not(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, isolation_level: str
) -> None:
    process, reply = await asked(repository)
    stale = await repository.get_by_id(DOMAIN, process.process_id)
    assert stale is not None

    async def own_transaction() -> bool:
        async with engine.begin() as conn:  # without one, it would get over a deadlock
            return await repository.advance(stale, conn, reply=reply)

    async with engine.begin() as conn:
        [claimed] = await repository.claim(DOMAIN, [ProcessStatus.PENDING], conn, limit=1)
        other = asyncio.ensure_future(own_transaction())
        await is_waiting_for_a_lock(administrator)
        async with asyncio.timeout(20):
            assert await repository.advance(claimed, conn, reply=reply)
    [result] = await asyncio.gather(other, return_exceptions=True)
    if isolation_level == "READ COMMITTED":
        assert result is False
    else:
        assert isinstance(result, ConcurrentUpdateError)


async def test_a_reply_and_then_the_process_beside_the_process_and_then_the_reply(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, isolation_level: str
) -> None:
    process, reply = await asked(repository)
    key = DOMAIN, process.process_id

    async def reply_first(conn: AsyncConnection) -> None:
        await repository.update_step_reply(*key, reply.command_id, reply, conn)
        anew = await repository.get_by_id(*key, conn)
        assert anew is not None
        await repository.update(anew, conn)

    async def own_transaction() -> None:
        async with engine.begin() as conn:
            await reply_first(conn)

    async with engine.begin() as conn:
        held = await repository.get_by_id(*key, conn, for_update=True)
        assert held is not None
        other = asyncio.ensure_future(own_transaction())
        await is_waiting_for_a_lock(administrator)
        async with asyncio.timeout(20):
            await repository.update_step_reply(*key, reply.command_id, reply, conn)
            await repository.update(held, conn)
    [result] = await asyncio.gather(other, return_exceptions=True)
    assert not isinstance(result, DeadlockError)
    if isolation_level == "READ COMMITTED":
        assert result is None
    else:
        assert isinstance(result, ConcurrentUpdateError)
