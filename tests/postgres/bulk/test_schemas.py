"""Every method goes to the schema that was chosen, by name or by a `schema_translate_map`: one for each tenant."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateSchema, DropSchema

from commandbus_process import (
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessFilter,
    ProcessMetadata,
    ProcessRetention,
    ProcessStatus,
    ReplyOutcome,
    StepAlreadyLoggedError,
)
from commandbus_process.tables import metadata, process_audit
from commandbus_process.tables import process as process_table
from tests.support.databases import async_url
from tests.support.everything import do_everything
from tests.support.items import DOMAIN, NOON, for_process, new_entries, new_entry, new_process, new_processes

TENANTS = ("tenant_a", 'Tenant "B".x 100%s é')  # one whose name has to be quoted
Repository = PostgresProcessRepository[Any]
Numbers = dict[str, tuple[int, int]]
LATER = datetime.now(UTC) + timedelta(days=1)


def of_tenant(tenant: str) -> dict[str, Any]:
    return {"schema_translate_map": {"commandbus": tenant}}


@pytest.fixture
async def tenants(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine without a map, to a database that has the tables in the schema of each tenant too."""
    engine = create_async_engine(async_url(database_url))
    for tenant in TENANTS:
        async with engine.begin() as conn:
            await conn.execute(CreateSchema(tenant))
            await conn.execution_options(**of_tenant(tenant))
            await conn.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


async def numbers(engine: AsyncEngine) -> Numbers:
    """How many processes and how many entries each schema has."""
    found: Numbers = {}
    for schema in ("commandbus", *TENANTS):
        async with engine.connect() as conn:
            await conn.execution_options(**of_tenant(schema))
            counts = [
                (await conn.execute(select(func.count()).select_from(table))).scalar_one()
                for table in (process_table, process_audit)
            ]
            found[schema] = (counts[0], counts[1])
    return found


async def save_many(repository: Repository, conn: AsyncConnection | None) -> None:
    processes = list(new_processes(3))
    assert await repository.save_many(processes, conn) == 3
    with pytest.raises(ProcessAlreadyExistsError) as caught:  # which is found out by another statement than COPY
        await repository.save_many([new_process(), processes[1]], conn)
    assert caught.value.process_id == processes[1].process_id


async def log_many(repository: Repository, conn: AsyncConnection | None) -> None:
    process, entries = new_process(), list(new_entries(3))
    await repository.save_many([process, *new_processes(2)], conn)
    assert await repository.log_many(for_process(DOMAIN, process.process_id, entries), conn) == 3
    assert await repository.log_many(for_process(DOMAIN, process.process_id, entries), conn) == 0
    with pytest.raises(StepAlreadyLoggedError):
        await repository.log_many(
            for_process(DOMAIN, process.process_id, [entries[1].model_copy(update={"step_name": "x"})]), conn
        )
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == entries


async def log_many_of_several(repository: Repository, conn: AsyncConnection | None) -> None:
    processes = list(new_processes(3))
    await repository.save_many(processes, conn)
    steps = [(DOMAIN, process.process_id, new_entry()) for process in processes]
    assert await repository.log_many(steps, conn) == 3
    assert await repository.log_many(steps, conn) == 0


async def single_methods(repository: Repository, conn: AsyncConnection | None) -> None:
    process, entry = new_process(), new_entry()
    await repository.save(process, conn)
    await repository.log_step(DOMAIN, process.process_id, entry, conn)
    reply = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS})
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply, conn)
    process.status = ProcessStatus.IN_PROGRESS
    await repository.update(process, conn)
    second = new_entry("charge")
    await repository.advance(process, conn, sent=second)
    await repository.advance(process, conn, reply=second.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS}))
    third, fourth = new_entries(2)
    await repository.advance(process, conn, sent=[third, fourth])
    found = await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert found is not None
    assert found.version == process.version
    assert len(await repository.find_by_status(DOMAIN, [ProcessStatus.IN_PROGRESS], conn)) == 1
    assert len(await repository.get_completed_steps(DOMAIN, process.process_id, conn)) == 2
    assert len(await repository.get_audit_trail(DOMAIN, process.process_id, conn)) == 4
    if conn is not None:
        assert len(await repository.claim(DOMAIN, [ProcessStatus.IN_PROGRESS], conn, limit=5)) == 1
        assert await repository.get_by_id(DOMAIN, process.process_id, conn, for_update=True) is not None


CALLS: dict[str, tuple[Callable[[Repository, AsyncConnection | None], Awaitable[None]], tuple[int, int]]] = {
    "save_many": (save_many, (3, 0)),
    "log_many": (log_many, (3, 3)),
    "log_many of several processes": (log_many_of_several, (3, 3)),
    "the single methods": (single_methods, (1, 4)),
}


@pytest.mark.own_database
@pytest.mark.parametrize("tenant", TENANTS)
@pytest.mark.parametrize("where", ["engine", "engine's connection", "connection", "name", "name, and a connection"])
@pytest.mark.parametrize("call", CALLS)
async def test_only_the_tenants_schema_is_written(tenants: AsyncEngine, call: str, where: str, tenant: str) -> None:
    method, expected = CALLS[call]
    by_name = where.startswith("name")
    engine = tenants if by_name or where == "connection" else tenants.execution_options(**of_tenant(tenant))
    repository = PostgresProcessRepository(engine, schema=tenant if by_name else None)
    async with nullcontext() if where in {"engine", "name"} else engine.begin() as conn:
        if conn is not None and where == "connection":
            await conn.execution_options(**of_tenant(tenant))
        await method(repository, conn)
    assert await numbers(tenants) == dict.fromkeys(("commandbus", *TENANTS), (0, 0)) | {tenant: expected}


@pytest.mark.own_database
async def test_one_id_in_two_schemas_is_two_processes(tenants: AsyncEngine) -> None:
    processes = list(new_processes(2))
    for tenant in TENANTS:
        repository: Repository = PostgresProcessRepository(tenants.execution_options(**of_tenant(tenant)))
        assert await repository.save_many(processes) == 2
        for process in processes:
            assert await repository.get_by_id(DOMAIN, process.process_id) == process
    last: ProcessMetadata = processes[0]
    assert await PostgresProcessRepository(tenants).get_by_id(DOMAIN, last.process_id) is None


@pytest.mark.own_database
@pytest.mark.parametrize("tenant", TENANTS)
async def test_no_statement_needs_the_schema_that_was_not_chosen(tenants: AsyncEngine, tenant: str) -> None:
    async with tenants.begin() as conn:
        await conn.execute(DropSchema("commandbus", cascade=True))
    await do_everything(tenants, tenant)


@pytest.mark.own_database
async def test_queries_and_retention_go_to_the_chosen_schema(tenants: AsyncEngine) -> None:
    async with tenants.begin() as conn:
        await conn.execute(DropSchema("commandbus", cascade=True))
    first, second = TENANTS
    ended = new_process().model_copy(update={"status": ProcessStatus.COMPLETED, "completed_at": NOON})
    await PostgresProcessRepository(tenants, schema=second).save(ended, sent=new_entry())
    wanted = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.COMPLETED])
    for schema, found in ((first, 0), (second, 1)):
        queries = PostgresProcessQueries(tenants, schema=schema)
        retention = ProcessRetention(tenants, schema=schema)
        assert len((await queries.page(wanted, steps=True)).items) == found
        assert (await queries.count(wanted)).value == found
        assert await queries.backlog(DOMAIN) == []
        for consistent in (False, True):
            async with queries.stream(wanted, consistent=consistent) as stream:
                assert len([each async for each in stream]) == found
        assert len(await queries.step_statistics(wanted, allow_scan=True)) == found
        assert len((await queries.open_steps(wanted, allow_scan=True)).items) == found
        assert len(await retention.preview(DOMAIN, ended_before=LATER)) == found
        if found:
            assert await retention.erase(DOMAIN, ended.process_id)
        archived: list[Any] = []

        async def archive(_: AsyncConnection, batch: list[Any], kept: list[Any] = archived) -> None:
            kept.extend(batch)

        async for progress in retention.purge(DOMAIN, ended_before=LATER, before_delete=archive):
            assert (progress.processes, progress.steps) == (found, found)
        assert len(archived) == found


@pytest.mark.own_database
async def test_the_name_wins_over_a_map_and_leaves_the_callers_own_statements_alone(tenants: AsyncEngine) -> None:
    first, second = TENANTS
    mapped = tenants.execution_options(**of_tenant(first))
    async with mapped.begin() as conn:
        await PostgresProcessRepository(tenants, schema=second).save(new_process(), conn)
        assert await conn.scalar(select(func.count()).select_from(process_table)) == 0
    assert await numbers(tenants) == {"commandbus": (0, 0), first: (0, 0), second: (1, 0)}
