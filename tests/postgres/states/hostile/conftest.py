"""One database for all tests of a file: after each, nothing but its own rows may be different."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessStatus,
    ReplyOutcome,
)
from tests.support.databases import async_url
from tests.support.items import DOMAIN, new_process


@pytest.fixture(scope="module")
async def owner(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


@pytest.fixture(scope="module")
def repository(owner: AsyncEngine) -> PostgresProcessRepository[JsonObject]:
    return PostgresProcessRepository(owner)


@pytest.fixture(scope="module")
async def watch(
    shared_url: str, repository: PostgresProcessRepository[JsonObject]
) -> AsyncIterator[psycopg.Connection[Any]]:
    """A connection for what is seen from outside, to a database that has two processes that nobody is to touch."""
    for domain in (DOMAIN, "refunds"):
        process = new_process().model_copy(update={"domain": domain, "status": ProcessStatus.WAITING_FOR_REPLY})
        await repository.save(process)
        for outcome in (None, ReplyOutcome.SUCCESS):
            entry = ProcessAuditEntry(
                step_name="reserve", command_id=uuid4(), command_type="Reserve", command_data={}, reply_outcome=outcome
            )
            await repository.log_step(domain, process.process_id, entry)
    with psycopg.connect(shared_url, autocommit=True) as connection:
        yield connection


# Of the catalogue, what was made in this database; roles belong to the whole server.
EVERYTHING_ELSE = """
    SELECT 'process', process::text FROM commandbus.process WHERE process_id <> %(process_id)s
    UNION ALL SELECT 'audit', process_audit::text FROM commandbus.process_audit WHERE process_id <> %(process_id)s
    UNION ALL SELECT 'revision', version_num FROM commandbus.commandbus_process_version
    UNION ALL SELECT 'schema', concat_ws(' ', nspname, nspowner, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_temp'
    UNION ALL SELECT 'relation', concat_ws(' ', oid, relname, relkind, relowner, relacl, relrowsecurity)
        FROM pg_class WHERE oid >= 16384 AND relname !~ '^pg_toast'
    UNION ALL SELECT 'column', concat_ws(' ', attrelid, attname, atttypid, attnotnull, atthasdef, attacl)
        FROM pg_attribute WHERE attrelid >= 16384
    UNION ALL SELECT 'constraint', concat_ws(' ', conname, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE oid >= 16384
    UNION ALL SELECT 'function', concat_ws(' ', proname, prosrc) FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'trigger', concat_ws(' ', tgname, tgenabled) FROM pg_trigger WHERE oid >= 16384
    UNION ALL SELECT 'setting', setconfig::text FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY 1, 2
"""


@pytest.fixture
def process_id() -> UUID:
    return uuid4()


@pytest.fixture(autouse=True)
def nothing_else_changes(watch: psycopg.Connection[Any], process_id: UUID) -> Iterator[None]:
    """Compares, after each case, all that does not belong to its process with what was there before it."""
    key = {"process_id": process_id}
    before = watch.execute(EVERYTHING_ELSE, key).fetchall()
    assert {kind for kind, _ in before} >= {"process", "audit", "relation", "column", "constraint"}
    yield
    assert watch.execute(EVERYTHING_ELSE, key).fetchall() == before
    watch.execute("DELETE FROM commandbus.process_audit WHERE process_id = %(process_id)s", key)
    watch.execute("DELETE FROM commandbus.process WHERE process_id = %(process_id)s", key)


@pytest.fixture
def statements(owner: AsyncEngine) -> Iterator[list[str]]:
    """What is sent to the server, until the test ends."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    event.listen(owner.sync_engine, "before_cursor_execute", note)
    yield sent
    event.remove(owner.sync_engine, "before_cursor_execute", note)
