"""What other software, the host's own objects, and races do to the single methods."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic.command import downgrade, upgrade
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    NothingWrittenError,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ReplyOutcome,
    StepReply,
)
from commandbus_process.migrations import alembic_config
from tests.support.databases import async_url, execute
from tests.support.items import DOMAIN, new_process
from tests.support.triggers import trigger

Repository = PostgresProcessRepository[JsonObject]


def command() -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge")


def just_after_the_first(engine: AsyncEngine, statement: str, url: str, script: str, values: dict[str, Any]) -> None:
    """Run a script of somebody else's when the engine has sent such a statement for the first time."""

    def run(_connection: object, _cursor: object, sent: str, *_: object) -> None:
        if statement in sent and not done:
            done.append(sent)
            with psycopg.connect(url) as other:
                other.execute(script.encode(), values)

    done: list[str] = []
    event.listen(engine.sync_engine, "after_cursor_execute", run)


SAVE = """
    INSERT INTO commandbus.process (domain, process_id, process_type, state)
    VALUES (%(domain)s, %(process_id)s, 'order', '{}')
"""


@pytest.mark.parametrize("version", [None, 1])
async def test_a_process_that_is_saved_while_it_is_being_updated(
    repository: Repository, engine: AsyncEngine, database_url: str, version: int | None
) -> None:
    process = new_process()
    process.version = version
    values = {"domain": DOMAIN, "process_id": process.process_id}
    just_after_the_first(engine, "UPDATE commandbus.process", database_url, SAVE, values)
    await repository.update(process)
    assert process.version == 2


async def test_a_process_that_is_saved_while_its_step_is_being_logged(
    repository: Repository, engine: AsyncEngine, database_url: str
) -> None:
    process_id, entry = uuid4(), command()
    values = {"domain": DOMAIN, "process_id": process_id}
    just_after_the_first(engine, "INSERT INTO commandbus.process_audit", database_url, SAVE, values)
    assert await repository.log_step(DOMAIN, process_id, entry)
    assert await repository.get_audit_trail(DOMAIN, process_id) == [entry]


async def test_a_process_that_is_deleted_while_it_is_being_saved(
    repository: Repository, engine: AsyncEngine, database_url: str
) -> None:
    process = new_process()
    await repository.save(process)
    just_after_the_first(engine, "INSERT INTO commandbus.process", database_url, "DELETE FROM commandbus.process", {})
    await repository.save(process)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process


Write = Callable[[Repository, UUID, AsyncConnection | None], Awaitable[object]]


async def save(repository: Repository, _: UUID, conn: AsyncConnection | None) -> None:
    process = new_process()
    process.state = {"order_no": 7}
    await repository.save(process, conn)


async def save_with_a_command(repository: Repository, _: UUID, conn: AsyncConnection | None) -> None:
    process = new_process()
    process.state = {"order_no": 7}
    await repository.save(process, conn, sent=command())


async def log(repository: Repository, process_id: UUID, conn: AsyncConnection | None) -> None:
    await repository.log_step(DOMAIN, process_id, command(), conn)


async def advance(repository: Repository, process_id: UUID, conn: AsyncConnection | None) -> None:
    process = await repository.get_by_id(DOMAIN, process_id, conn)
    assert process is not None
    await repository.advance(process, conn, sent=[command(), command()])


@pytest.mark.own_database
@pytest.mark.parametrize("write", [save, save_with_a_command, log, advance], ids=lambda each: each.__name__)
async def test_the_error_names_a_unique_index_of_the_host(
    repository: Repository, database_url: str, conn: AsyncConnection | None, write: Write
) -> None:
    process = new_process()
    process.state = {"order_no": 7}
    await repository.save(process, sent=command())
    execute(
        database_url,
        "CREATE UNIQUE INDEX host_order_no ON commandbus.process ((state ->> 'order_no'));"
        "CREATE UNIQUE INDEX host_step ON commandbus.process_audit (domain, step_name)",
    )
    with pytest.raises(IntegrityError) as caught:
        await write(repository, process.process_id, conn)
    assert isinstance(caught.value.orig, psycopg.Error)
    assert caught.value.orig.diag.constraint_name in {"host_order_no", "host_step"}


@pytest.mark.own_database
@pytest.mark.parametrize("write", [log, advance], ids=lambda each: each.__name__)
async def test_a_sequence_that_is_behind_after_a_restore(
    repository: Repository, database_url: str, write: Write
) -> None:
    process = new_process()
    await repository.save(process, sent=[command(), command()])
    execute(database_url, "SELECT setval('commandbus.process_audit_id_seq', 1, false)")
    with pytest.raises(IntegrityError, match="process_audit_pkey"):
        await write(repository, process.process_id, None)


@pytest.mark.own_database
@pytest.mark.parametrize("write", [save_with_a_command, log, advance], ids=lambda each: each.__name__)
async def test_an_error_that_a_hosts_trigger_raises_arrives(
    repository: Repository, database_url: str, write: Write
) -> None:
    """Also if it fails with the code that the library's own cast fails with."""
    process = new_process()
    await repository.save(process)
    body = "PERFORM 'no number of the host'::integer; RETURN NEW;"
    execute(database_url, trigger("BEFORE INSERT ON commandbus.process_audit", body))
    with pytest.raises(DBAPIError, match="no number of the host"):
        await write(repository, process.process_id, None)


@pytest.mark.own_database
async def test_a_first_command_that_a_trigger_swallows(repository: Repository, database_url: str) -> None:
    execute(database_url, trigger("BEFORE INSERT ON commandbus.process_audit"))
    for sent in ([command()], [command(), command()]):
        process = new_process()
        with pytest.raises(NothingWrittenError):
            await repository.save(process, sent=sent)
        assert process.version is None
        assert await repository.get_by_id(DOMAIN, process.process_id) is None


@pytest.mark.parametrize("change", ["current_step = ''", "process_type = ''", "error_code = ''"])
async def test_what_other_software_left_empty_can_be_read_and_written(
    repository: Repository, administrator: AsyncEngine, change: str
) -> None:
    process = new_process()
    await repository.save(process)
    async with administrator.begin() as conn:
        await conn.execute(text(f"UPDATE commandbus.process SET {change}"))
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    await repository.update(found)
    await repository.advance(found, sent=command())
    assert await repository.get_by_id(DOMAIN, process.process_id) == found


async def test_a_redelivery_is_logged(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    process, entry = new_process(), command()
    process.state = {"secret": "hunter2"}
    await repository.save(process)
    reply = StepReply(entry.command_id, ReplyOutcome.SUCCESS, {"secret": "hunter2"})
    with caplog.at_level(logging.INFO, logger="commandbus_process"):
        for _ in range(2):
            await repository.log_step(DOMAIN, process.process_id, entry)
            await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply)
        await repository.advance(process, reply=reply)
    operations = [getattr(record, "operation", None) for record in caplog.records]
    assert operations == ["log_step", "update_step_reply", "advance"]
    assert {getattr(record, "command_id", None) for record in caplog.records} == {entry.command_id}
    assert "hunter2" not in caplog.text


Call = Callable[[Repository, Any, ProcessMetadata], Awaitable[object]]
CALLS: list[tuple[str, Call]] = [
    ("process", lambda repository, bad, _: repository.save(bad)),
    ("process", lambda repository, bad, _: repository.update(bad)),
    ("process", lambda repository, bad, _: repository.advance(bad)),
    ("entry", lambda repository, bad, _: repository.log_step(DOMAIN, uuid4(), bad)),
    ("entry", lambda repository, bad, _: repository.update_step_reply(DOMAIN, uuid4(), uuid4(), bad)),
    ("sent", lambda repository, bad, process: repository.advance(process, sent=bad)),
    ("sent[0]", lambda repository, bad, process: repository.advance(process, sent=[bad])),
    ("sent[0]", lambda repository, bad, process: repository.save(process, sent=[bad])),
    ("on_unreadable", lambda repository, bad, _: repository.find_by_status(DOMAIN, [], on_unreadable=bad)),
]


@pytest.mark.parametrize(("argument", "call"), CALLS)
async def test_an_argument_of_another_kind(repository: Repository, argument: str, call: Call) -> None:
    process = new_process()
    process.version = 1
    for bad in (None, 7):
        with pytest.raises(InvalidInputError) as caught:
            await call(repository, bad, process)
        assert caught.value.field == argument


@pytest.mark.own_database
async def test_versions_that_begin_anew_after_a_downgrade(database_url: str) -> None:
    engine = create_async_engine(async_url(database_url))
    repository, processes = PostgresProcessRepository(engine), [new_process(), new_process()]
    mine: list[ProcessMetadata] = []
    for process in processes:
        await repository.save(process)
        found = await repository.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        mine.append(found)
    changed, unchanged = mine
    await repository.update(processes[0])  # by somebody else
    await engine.dispose()
    for direction, revision in ((downgrade, "commandbus_0001"), (upgrade, "head")):
        await asyncio.to_thread(direction, alembic_config(database_url), revision)
    stored = await repository.get_by_id(DOMAIN, changed.process_id)
    assert stored is not None
    assert stored.version == changed.version == 1
    with pytest.raises(ConcurrentUpdateError):
        await repository.update(changed)
    await repository.update(unchanged)
    await engine.dispose()
