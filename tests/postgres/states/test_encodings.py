"""What an encoding or a limit of the server refuses is an argument at fault: named, and not quoted."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic.command import upgrade
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ReplyOutcome,
)
from commandbus_process.migrations import alembic_config
from commandbus_process.postgres._transaction import translated_errors
from tests.support.databases import Server, async_url, execute
from tests.support.items import DOMAIN, new_process

Repository = PostgresProcessRepository[JsonObject]

MARK = "no error may quote this, "
EURO = f"{MARK}12 €"
LATIN = "Déjà vu"


@pytest.fixture(scope="module")
def latin_url(newest_server: Server) -> Iterator[str]:
    """A migrated database that has the characters of western Europe, without the euro sign."""
    name = sql.Identifier(f"commandbus_test_{uuid4().hex}")
    with psycopg.connect(newest_server.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").format(name)
        )
    url = make_url(newest_server.url).set(database=name.as_string().strip('"')).render_as_string(hide_password=False)
    try:
        upgrade(alembic_config(url), "head")
        yield url
    finally:
        with psycopg.connect(newest_server.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "the database's, the client has all": ("latin", {"client_encoding": "utf8"}, "database's encoding .LATIN1."),
    "the database's, the client as it comes": ("latin", {}, "encoding .LATIN1."),
    "the client's": ("utf8", {"client_encoding": "latin1"}, "client's encoding .LATIN1."),
    "the client's, of Windows": ("utf8", {"client_encoding": "win1251"}, "client's encoding .WIN1251."),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], str]:
    return CASES[request.param]


@pytest.fixture
async def engine(case: tuple[str, dict[str, Any], str], latin_url: str, shared_url: str) -> AsyncIterator[AsyncEngine]:
    url = latin_url if case[0] == "latin" else shared_url
    engine = create_async_engine(async_url(url), connect_args=case[1])
    yield engine
    await engine.dispose()


# What every case lacks: the euro sign is in Windows' encodings, Chinese is in none.
LACKING = f"{MARK}中 €"


def entry(**changes: Any) -> ProcessAuditEntry:
    given = ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge")
    return given.model_copy(update=changes)


Write = Callable[[Repository, ProcessMetadata, ProcessAuditEntry, AsyncConnection | None], Awaitable[object]]

WRITES: dict[str, tuple[str, Write]] = {
    "save": (
        "state",
        lambda repository, process, _, conn: repository.save(
            new_process().model_copy(update={"domain": process.domain, "state": {LACKING: 1}}), conn
        ),
    ),
    "update": (
        "error_message",
        lambda repository, process, _, conn: repository.update(
            process.model_copy(update={"error_message": LACKING}), conn
        ),
    ),
    "log_step": (
        "command_data",
        lambda repository, process, _, conn: repository.log_step(
            process.domain, process.process_id, entry(command_data={"text": [LACKING]}), conn
        ),
    ),
    "update_step_reply": (
        "reply_data",
        lambda repository, process, logged, conn: repository.update_step_reply(
            process.domain,
            process.process_id,
            logged.command_id,
            logged.model_copy(update={"reply_outcome": ReplyOutcome.FAILED, "reply_data": {"why": LACKING}}),
            conn,
        ),
    ),
    "advance": (
        "state",
        lambda repository, process, _, conn: repository.advance(
            process.model_copy(update={"state": {"text": LACKING}}), conn, sent=[entry(), entry()]
        ),
    ),
    "get_by_id": (
        "domain",
        lambda repository, process, _, conn: repository.get_by_id(LACKING, process.process_id, conn),
    ),
}


@pytest.mark.parametrize("write", WRITES)
async def test_a_character_that_an_encoding_lacks(
    engine: AsyncEngine, case: tuple[str, dict[str, Any], str], write: str
) -> None:
    """It is found before the statement is sent, so that the caller's transaction goes on."""
    repository, process, logged = Repository(engine), new_process(), entry()
    field, operation = WRITES[write]
    await repository.save(process)
    await repository.log_step(DOMAIN, process.process_id, logged)
    with pytest.raises(InvalidInputError, match=case[2]) as caught:
        await operation(repository, process, logged, None)
    assert caught.value.field == field
    assert MARK not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    other = new_process()
    async with engine.begin() as conn:
        await repository.save(other, conn)
        with pytest.raises(InvalidInputError, match=case[2]):
            await operation(repository, process, logged, conn)
        await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert await repository.get_by_id(DOMAIN, other.process_id) == other
    assert await repository.get_by_id(DOMAIN, process.process_id) == process
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == [logged]


@pytest.mark.parametrize("client", [{"client_encoding": "utf8"}, {"client_encoding": "latin1"}, {}])
async def test_what_the_encoding_has_comes_back(latin_url: str, client: dict[str, Any]) -> None:
    engine = create_async_engine(async_url(latin_url), connect_args=client)
    try:
        repository, process = Repository(engine), new_process()
        process.state = {LATIN: LATIN}
        await repository.save(process)
        process.error_message = LATIN
        await repository.update(process)
        assert await repository.get_by_id(DOMAIN, process.process_id) == process
    finally:
        await engine.dispose()


async def send_many(conn: AsyncConnection) -> None:
    """As the bulk methods do, in a savepoint."""
    async with conn.begin_nested():
        with translated_errors("processes"):
            await conn.execute(text("SELECT jsonb(cast(:items AS text))"), {"items": f'["{LACKING}"]'})


async def test_many_items_with_a_character_that_an_encoding_lacks(engine: AsyncEngine) -> None:
    """The statement for many items fails too. The server does not report which item it was."""
    found: list[InvalidInputError] = []
    async with engine.begin() as conn:
        with pytest.raises(InvalidInputError, match="processes: have a character") as caught:
            await send_many(conn)
        found.append(caught.value)
        assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
    assert MARK not in repr(found)
    assert found[0].__suppress_context__


async def test_what_the_client_cannot_read_is_no_argument_at_fault(shared_url: str) -> None:
    """The server's error passes: the value in the row is a good one."""
    everything = create_async_engine(async_url(shared_url))
    narrow = create_async_engine(async_url(shared_url), connect_args={"client_encoding": "latin1"})
    try:
        process = new_process()
        process.error_message = EURO
        await Repository(everything).save(process)
        with pytest.raises(DBAPIError) as caught:
            await Repository(narrow).get_by_id(DOMAIN, process.process_id)
        assert isinstance(caught.value.orig, psycopg.errors.UntranslatableCharacter)
    finally:
        await everything.dispose()
        await narrow.dispose()


@pytest.mark.own_database
@pytest.mark.parametrize("on_connection", [False, True])
async def test_what_exceeds_a_limit_of_the_server(
    engine_of_utf8: AsyncEngine, database_url: str, *, on_connection: bool
) -> None:
    """Here the row of an index of the host's own; a state of more than 256 MB is refused with the same code."""
    execute(database_url, "CREATE INDEX ON commandbus.process (error_message)")
    repository, process = Repository(engine_of_utf8), new_process()
    await repository.save(process)
    # Nothing that repeats, which would be compressed.
    process.error_message = MARK + "".join(uuid4().hex for _ in range(300))
    async with engine_of_utf8.connect() as conn:
        with pytest.raises(
            InvalidInputError, match="error_message: exceeds a limit of PostgreSQL: index row "
        ) as caught:
            await repository.update(process, conn if on_connection else None)
    assert MARK not in repr(caught.value)
    assert caught.value.__suppress_context__


@pytest.fixture
async def engine_of_utf8(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(database_url))
    yield engine
    await engine.dispose()
