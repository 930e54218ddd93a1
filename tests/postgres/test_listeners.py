"""What a host does in listeners of SQLAlchemy's transaction events is in force for the methods without `conn` too."""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessStatus,
    ReplyOutcome,
    run_in_transaction,
)
from tests.support.databases import Server, as_role, async_url, execute
from tests.support.items import for_process, new_process
from tests.support.wire import wire_before

Repository = PostgresProcessRepository[JsonObject]


class VetoError(Exception):
    pass


def veto(_connection: Connection) -> None:
    raise VetoError


def approve(_connection: Connection) -> None:
    pass


@pytest.fixture
async def administrator(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


@pytest.fixture
async def engine(shared_url: str, newest_server: Server) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(as_role(shared_url, newest_server.application)))
    yield engine
    await engine.dispose()


@contextmanager
def listening(target: Any, name: str, listener: Callable[..., None]) -> Generator[None]:
    event.listen(target, name, listener)
    try:
        yield
    finally:
        event.remove(target, name, listener)


def command() -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge")


def replied(entry: ProcessAuditEntry) -> ProcessAuditEntry:
    return entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS})


Write = Callable[[Repository, ProcessMetadata, ProcessAuditEntry], Awaitable[object]]

WRITES: dict[str, Write] = {
    "save": lambda repository, process, _: repository.save(other(process)),
    "update": lambda repository, process, _: repository.update(process),
    "log_step": lambda repository, process, _: repository.log_step(process.domain, process.process_id, command()),
    "update_step_reply": lambda repository, process, logged: repository.update_step_reply(
        process.domain, process.process_id, logged.command_id, replied(logged)
    ),
    "advance": lambda repository, process, logged: repository.advance(
        process, reply=replied(logged), sent=[command(), command()]
    ),
    "save_many": lambda repository, process, _: repository.save_many([other(process)]),
    "log_many": lambda repository, process, _: repository.log_many(
        for_process(process.domain, process.process_id, [command()])
    ),
}


def other(process: ProcessMetadata) -> ProcessMetadata:
    return new_process().model_copy(update={"domain": process.domain})


async def given(repository: Repository) -> tuple[ProcessMetadata, ProcessAuditEntry]:
    """A process in a domain of its own, with a command that nobody has replied to."""
    process, logged = new_process().model_copy(update={"domain": uuid4().hex}), command()
    await repository.save(process)
    await repository.log_step(process.domain, process.process_id, logged)
    return process, logged


TARGETS: dict[str, Callable[[AsyncEngine], object]] = {
    "the engine": lambda engine: engine.sync_engine,
    "all engines": lambda _: Engine,
    "all connections": lambda _: Connection,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("write", WRITES)
async def test_a_veto_at_commit_undoes_the_write(
    engine: AsyncEngine, administrator: AsyncEngine, target: str, write: str
) -> None:
    plain = Repository(administrator)
    process, logged = await given(plain)
    before = process.model_copy(deep=True)
    with listening(TARGETS[target](engine), "commit", veto), pytest.raises(VetoError):
        await WRITES[write](Repository(engine), process, logged)
    assert await plain.find_by_status(before.domain, list(ProcessStatus)) == [before]
    assert await plain.get_audit_trail(before.domain, before.process_id) == [logged]
    assert process == before
    await WRITES[write](Repository(engine), process, logged)


async def test_an_engine_with_options_has_the_listeners_of_the_one_that_it_was_made_from(
    engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    """And a listener of its own is in force there only."""
    plain = Repository(administrator)
    process, logged = await given(plain)
    with_options = engine.execution_options(isolation_level="REPEATABLE READ")
    with listening(engine.sync_engine, "commit", veto), pytest.raises(VetoError):
        await WRITES["update"](Repository(with_options), process, logged)
    with listening(with_options.sync_engine, "commit", veto):
        with pytest.raises(VetoError):
            await WRITES["update"](Repository(with_options), process, logged)
        await WRITES["update"](Repository(engine), process, logged)
    found = await plain.get_by_id(process.domain, process.process_id)
    assert found is not None
    assert found.version == 2


async def test_only_an_engine_with_such_a_listener_pays_for_the_transaction(
    shared_url: str, administrator: AsyncEngine
) -> None:
    process, _ = await given(Repository(administrator))
    async with wire_before(shared_url) as (wire, url):
        engine = create_async_engine(async_url(url))
        repository = Repository(engine)
        try:
            for listener, expected in ((False, [["SELECT 1"]]), (True, [["BEGIN"], ["SELECT 1"], ["COMMIT"]])):
                if listener:
                    event.listen(engine.sync_engine, "commit", approve)
                async with engine.connect():
                    pass
                wire.round_trips.clear()
                await repository.get_by_id(process.domain, process.process_id)
                assert wire.round_trips == expected
        finally:
            await engine.dispose()


POLICIES = """
ALTER TABLE commandbus.process ENABLE ROW LEVEL SECURITY;
ALTER TABLE commandbus.process_audit ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON commandbus.process USING (domain = current_setting('application.tenant', true));
CREATE POLICY tenant ON commandbus.process_audit USING (domain = current_setting('application.tenant', true));
"""
NO_POLICIES = """
DROP POLICY tenant ON commandbus.process; DROP POLICY tenant ON commandbus.process_audit;
ALTER TABLE commandbus.process DISABLE ROW LEVEL SECURITY;
ALTER TABLE commandbus.process_audit DISABLE ROW LEVEL SECURITY;
"""


@pytest.fixture
def _row_level_security(shared_url: str) -> Generator[None]:
    execute(shared_url, POLICIES)
    yield
    execute(shared_url, NO_POLICIES)


def acting_for(engine: AsyncEngine, tenant: list[str]) -> None:
    """As in the documentation: SET LOCAL in a listener to `begin`."""

    def set_tenant(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT set_config('application.tenant', %s, true)", (tenant[0],))

    event.listen(engine.sync_engine, "begin", set_tenant)


Read = Callable[[Repository, str, UUID], Awaitable[object]]

READS: dict[str, Read] = {
    "get_by_id": lambda repository, domain, process_id: repository.get_by_id(domain, process_id),
    "find_by_status": lambda repository, domain, _: repository.find_by_status(domain, list(ProcessStatus)),
    "get_audit_trail": lambda repository, domain, process_id: repository.get_audit_trail(domain, process_id),
    "get_completed_steps": lambda repository, domain, process_id: repository.get_completed_steps(domain, process_id),
}


@pytest.mark.usefixtures("_row_level_security")
@pytest.mark.parametrize("write", WRITES)
async def test_set_local_in_a_begin_listener_is_in_force_for_a_write(
    engine: AsyncEngine, administrator: AsyncEngine, write: str
) -> None:
    process, logged = await given(Repository(administrator))
    repository, tenant = Repository(engine), [process.domain]
    acting_for(engine, tenant)
    before = await everything(administrator, process)
    tenant[0] = "somebody else"
    if write in {"save", "save_many"}:
        with pytest.raises(DBAPIError, match="row-level security"):
            await WRITES[write](repository, process, logged)
    else:
        with pytest.raises(ProcessNotFoundError) if write != "update_step_reply" else pytest.raises(LookupError):
            await WRITES[write](repository, process, logged)
    assert await everything(administrator, process) == before
    tenant[0] = process.domain
    await WRITES[write](repository, process, logged)
    assert await everything(administrator, process) != before


async def everything(administrator: AsyncEngine, process: ProcessMetadata) -> tuple[object, ...]:
    plain = Repository(administrator)
    return (
        await plain.find_by_status(process.domain, list(ProcessStatus)),
        await plain.get_audit_trail(process.domain, process.process_id),
    )


@pytest.mark.usefixtures("_row_level_security")
async def test_set_local_in_a_begin_listener_is_in_force_for_a_read_and_a_claim(
    engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    process, logged = await given(Repository(administrator))
    repository, tenant = Repository(engine), [process.domain]
    acting_for(engine, tenant)
    await repository.update_step_reply(process.domain, process.process_id, logged.command_id, replied(logged))
    for read in READS.values():
        assert await read(repository, process.domain, process.process_id)
    tenant[0] = "somebody else"
    for read in READS.values():
        assert not await read(repository, process.domain, process.process_id)
    for name, expected in (("somebody else", 0), (process.domain, 1)):
        tenant[0] = name
        claimed = await run_in_transaction(
            engine, lambda conn: repository.claim(process.domain, list(ProcessStatus), conn, limit=5)
        )
        assert len(claimed) == expected
