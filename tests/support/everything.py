"""Every method of the repository, on every path that has a statement of its own."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessNotFoundError,
    ProcessStatus,
    ReplyOutcome,
)
from tests.support.items import DOMAIN, for_process, new_process
from tests.support.schema import VERSIONS


def new_command() -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name="pack", command_id=uuid4(), command_type="Pack", command_data={"boxes": 1})


async def advance_in_every_way(
    repository: PostgresProcessRepository[JsonObject], domain: str, process_id: UUID
) -> None:
    """With and without a reply and commands; each time twice, as a redelivery would, if it can be recognised."""
    for commands in (0, 1, 2):
        for is_replied in (False, True):
            process = await repository.get_by_id(domain, process_id)
            assert process is not None
            first = new_command()
            await repository.log_step(domain, process_id, first)
            reply = first.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS}) if is_replied else None
            sent = [new_command() for _ in range(commands)]
            again = process.model_copy(deep=True)
            assert await repository.advance(process, reply=reply, sent=sent)
            if is_replied or sent:
                assert not await repository.advance(again, reply=reply, sent=sent)


async def do_everything_in_bulk(
    repository: PostgresProcessRepository[JsonObject], domain: str, process_id: UUID
) -> None:
    """What is new, what is delivered again, and what is in the way."""
    processes = [new_process(), new_process()]
    assert await repository.save_many(processes) == 2
    with pytest.raises(ProcessAlreadyExistsError):
        await repository.save_many([new_process(), *processes])
    entries = [new_command(), new_command()]
    for new_ones in (2, 0):
        assert await repository.log_many(for_process(domain, process_id, entries)) == new_ones
        steps = [(DOMAIN, process.process_id, entries[0]) for process in processes]
        assert await repository.log_many(steps) == new_ones
    assert await repository.log_many(for_process(domain, process_id, [*entries, new_command()])) == 1
    with pytest.raises(ProcessNotFoundError):
        await repository.log_many(for_process(domain, uuid4(), entries))


async def do_everything(engine: AsyncEngine, schema: str | None = None) -> None:
    """Call every method on every path that has a statement of its own, and read the revision."""
    repository: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(engine, schema=schema)
    process = new_process()
    sent = ProcessAuditEntry(step_name="reserve", command_id=uuid4(), command_type="Reserve", command_data={})
    replied = sent.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "received_at": sent.sent_at})
    key = DOMAIN, process.process_id
    await repository.save(process)
    await repository.update(process)
    await repository.update(process.model_copy(update={"version": None}))
    for _ in range(2):
        await repository.log_step(*key, sent)
    for _ in range(2):
        await repository.update_step_reply(*key, sent.command_id, replied)
    await repository.get_by_id(*key)
    await repository.find_by_status(DOMAIN, list(ProcessStatus))
    await repository.get_audit_trail(*key)
    assert await repository.get_completed_steps(*key) == ["reserve"]
    assert [entry.step_name for entry in await repository.get_steps_to_compensate(*key)] == ["reserve"]
    await repository.get_steps_to_compensate(*key, include_unknown=True)
    for count in (1, 2):
        await repository.save(new_process(), sent=[new_command() for _ in range(count)])
    async with engine.begin() as conn:
        assert not await repository.update_step_reply(*key, sent.command_id, replied, conn)
    await advance_in_every_way(repository, *key)
    await do_everything_in_bulk(repository, *key)
    async with engine.connect() as conn:
        for lock in (True, "nowait", "skip_locked"):
            await repository.get_by_id(*key, conn, for_update=lock)
        assert await repository.claim(DOMAIN, list(ProcessStatus), conn, limit=1)
        if schema is None:
            await conn.execute(text(f"SELECT version_num FROM {VERSIONS}"))
