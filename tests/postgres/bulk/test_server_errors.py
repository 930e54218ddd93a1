"""Which errors of the server the bulk methods turn into others, and which arrive as they are."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    NothingWrittenError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessLockedError,
    ProcessMetadata,
    ProcessStatus,
)
from tests.support.databases import execute
from tests.support.items import BATCH, DOMAIN, for_process, new_entries, new_entry, new_process, new_processes, numbers
from tests.support.triggers import trigger
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository[Any]
CARD = "card-4111-1111"


@pytest.fixture(params=["own transaction", "caller's connection"])
async def limited(request: pytest.FixtureRequest, engine: AsyncEngine) -> AsyncIterator["Limited"]:
    """A repository whose sessions can have limits of time, and perhaps a connection that has written before."""
    made = create_async_engine(engine.url, pool_size=1, max_overflow=0, hide_parameters=True)
    repository: Repository = PostgresProcessRepository(made)
    if request.param == "own transaction":
        yield Limited(made, repository, None)
    else:
        async with made.connect() as conn:
            yield Limited(made, repository, conn)
    await made.dispose()


class Limited:
    """A repository on one session, alone or with a caller's transaction that has written already."""

    def __init__(self, engine: AsyncEngine, repository: Repository, conn: AsyncConnection | None) -> None:
        self.engine = engine
        self.repository = repository
        self.conn = conn
        self.before = new_process()

    async def begin(self, setting: str = "") -> None:
        """Set something for the session, and begin."""
        if setting:
            name, value = setting.split(" ", 1)

            def begun(connection: Connection) -> None:
                connection.exec_driver_sql(f"SET {name} = {value}")

            event.listen(self.engine.sync_engine, "begin", begun)
        if self.conn is not None:
            await self.repository.save(self.before, self.conn)

    async def assert_alive(self, engine: AsyncEngine, processes: int) -> None:
        """Look that what the caller wrote before and writes now is there, and nothing of the failed call."""
        if self.conn is not None:
            assert await self.repository.get_by_id(DOMAIN, self.before.process_id, self.conn) is not None
            await self.repository.save(new_process(), self.conn)
            await self.conn.commit()
            processes += 2
        assert (await numbers(engine))[0] == processes


def secret_process(**changes: Any) -> ProcessMetadata:
    return new_process().model_copy(update={"state": {"card": CARD, "order_no": 7}, **changes})


def texts_of(error: BaseException | None) -> str:
    """The messages of an error and of all that it came from."""
    told = ""
    while error is not None:
        told += f"{type(error).__name__}: {error}\n"
        error = error.__cause__ or error.__context__
    return told


# Locks and limits.


@pytest.mark.own_database
@pytest.mark.parametrize("as_trigger", [False, True], ids=["plain", "row by row"])
async def test_a_lock_timeout_ends_the_one_wait(
    limited: Limited, engine: AsyncEngine, administrator: AsyncEngine, database_url: str, *, as_trigger: bool
) -> None:
    """With a trigger, COPY writes row by row, and its errors would quote the row."""
    if as_trigger:
        execute(database_url, trigger("BEFORE INSERT ON commandbus.process", "RETURN NEW;"))
    process, waits = new_process(), 0
    await limited.begin("lock_timeout '500ms'")
    async with engine.connect() as holder:
        await PostgresProcessRepository(engine).save(process, holder)
        task = asyncio.create_task(
            limited.repository.save_many(
                [secret_process(), secret_process(process_id=process.process_id)], limited.conn
            )
        )
        while not task.done():
            waiting = asyncio.create_task(is_waiting_for_a_lock(administrator))
            await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                break
            waits += 1
            async with asyncio.timeout(20), administrator.connect() as conn:  # until that wait is over
                while (await conn.execute(text(WAITING))).scalar_one():
                    await conn.rollback()
        with pytest.raises(ProcessLockedError) as caught:
            await task
        await holder.rollback()
    assert caught.value.retryable
    assert (caught.value.domain, caught.value.process_id) == (None, None)
    assert waits <= 1
    assert CARD not in texts_of(caught.value)
    await limited.assert_alive(engine, 0)


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_a_lock_timeout_of_steps(limited: Limited, engine: AsyncEngine, administrator: AsyncEngine) -> None:
    process = new_process()
    await PostgresProcessRepository(engine).save(process)
    await limited.begin("lock_timeout '500ms'")
    async with administrator.connect() as holder:
        await holder.execute(text("SELECT 1 FROM commandbus.process FOR UPDATE"))
        with pytest.raises(ProcessLockedError) as caught:
            await limited.repository.log_many(for_process(DOMAIN, process.process_id, new_entries(3)), limited.conn)
    assert caught.value.retryable
    await limited.assert_alive(engine, 1)
    assert (await numbers(engine))[1] == 0


@pytest.mark.parametrize("how", ["statement_timeout", "cancelled"])
async def test_a_statement_that_is_cut_off_by_the_server(
    limited: Limited, engine: AsyncEngine, administrator: AsyncEngine, how: str
) -> None:
    process = new_process()
    await limited.begin("statement_timeout '300ms'" if how == "statement_timeout" else "")
    async with engine.connect() as holder:
        await PostgresProcessRepository(engine).save(process, holder)
        task = asyncio.create_task(
            limited.repository.save_many([secret_process(process_id=process.process_id)], limited.conn)
        )
        if how == "cancelled":
            await is_waiting_for_a_lock(administrator)
            async with administrator.connect() as conn:
                await conn.execute(text(f"SELECT pg_cancel_backend(pid) {WAITING.removeprefix('SELECT count(*)')}"))
        async with asyncio.timeout(20):
            with pytest.raises(OperationalError) as caught:
                await task
        await holder.rollback()
    assert getattr(caught.value.orig, "sqlstate", None) == "57014"
    assert not caught.value.connection_invalidated
    assert CARD not in texts_of(caught.value)
    await limited.assert_alive(engine, 0)


@pytest.mark.own_database
async def test_an_error_that_a_trigger_raises_arrives_with_its_text(
    limited: Limited, engine: AsyncEngine, database_url: str
) -> None:
    body = "RAISE 'no room left' USING ERRCODE = 'disk_full';"
    execute(database_url, trigger("BEFORE INSERT ON commandbus.process_audit", body))
    process = new_process()
    await PostgresProcessRepository(engine).save(process)
    await limited.begin()
    entry = new_entry(command_data={"card": CARD})
    with pytest.raises(OperationalError, match="no room left") as caught:
        await limited.repository.log_many(for_process(DOMAIN, process.process_id, [entry]), limited.conn)
    assert getattr(caught.value.orig, "sqlstate", None) == "53100"
    assert CARD not in texts_of(caught.value)
    await limited.assert_alive(engine, 1)


async def test_a_lost_connection_is_invalidated_and_reported_as_lost(
    engine: AsyncEngine, administrator: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    process, repository = new_process(), PostgresProcessRepository(engine)
    caplog.set_level(logging.INFO, "sqlalchemy.pool")
    async with engine.connect() as holder, engine.connect() as conn:
        await repository.save(process, holder)
        task = asyncio.create_task(repository.save_many([secret_process(process_id=process.process_id)], conn))
        await is_waiting_for_a_lock(administrator)
        async with administrator.connect() as other:
            await other.execute(text(f"SELECT pg_terminate_backend(pid) {WAITING.removeprefix('SELECT count(*)')}"))
        with pytest.raises(DBAPIError) as caught:
            await task
        assert caught.value.connection_invalidated
        assert conn.invalidated
        await holder.rollback()
    assert CARD not in texts_of(caught.value)
    assert CARD not in caplog.text


# Conflicts with what is not the library's own.


async def save(repository: Repository, conn: AsyncConnection | None) -> None:
    await repository.save_many([new_process(), secret_process(), new_process()], conn)


async def save_late(repository: Repository, conn: AsyncConnection | None) -> None:
    await repository.save_many([*new_processes(BATCH + 1), secret_process()], conn)


async def log(repository: Repository, conn: AsyncConnection | None) -> None:
    [process] = await repository.find_by_status(DOMAIN, [ProcessStatus.FAILED], conn)
    await repository.log_many(for_process(DOMAIN, process.process_id, [new_entry("reserve"), new_entry("twice")]), conn)


HOSTS: dict[str, tuple[str, Callable[[Repository, AsyncConnection | None], Awaitable[None]]]] = {
    "order_number": ("CREATE UNIQUE INDEX order_number ON commandbus.process ((state->>'order_no'))", save),
    "order_number_late": (
        "CREATE UNIQUE INDEX order_number_late ON commandbus.process ((state->>'order_no'))",
        save_late,
    ),
    "no_card": ("ALTER TABLE commandbus.process ADD CONSTRAINT no_card CHECK (NOT state ? 'card') NOT VALID", save),
    "excluded": (
        "ALTER TABLE commandbus.process ADD CONSTRAINT excluded EXCLUDE ((state->>'order_no') WITH =)",
        save,
    ),
    "process_audit_pkey": ("SELECT setval('commandbus.process_audit_id_seq', 1, false)", log),
    "one_of_each": (
        "CREATE UNIQUE INDEX one_of_each ON commandbus.process_audit (process_id, command_type, step_name)",
        log,
    ),
}


@pytest.mark.own_database
@pytest.mark.parametrize("constraint", HOSTS)
async def test_what_is_not_the_librarys_own_is_the_servers_error(
    limited: Limited, engine: AsyncEngine, database_url: str, constraint: str
) -> None:
    definition, call = HOSTS[constraint]
    there: Repository = PostgresProcessRepository(engine)
    process = secret_process(status=ProcessStatus.FAILED)
    await there.save(process)
    await there.log_many(for_process(DOMAIN, process.process_id, [new_entry("twice"), *new_entries(20)]))
    execute(database_url, definition)
    await limited.begin()
    with pytest.raises(IntegrityError) as caught:
        await call(limited.repository, limited.conn)
    diagnostics: Any = getattr(caught.value.orig, "diag", None)
    assert diagnostics.constraint_name == constraint
    await limited.assert_alive(engine, 1)
    assert (await numbers(engine))[1] == 21


@pytest.mark.own_database
async def test_the_error_names_the_librarys_key_though_another_is_taken_too(
    limited: Limited, engine: AsyncEngine, database_url: str
) -> None:
    process = new_process()
    await PostgresProcessRepository(engine).save(process)
    limited.before.state = {}
    execute(database_url, "CREATE UNIQUE INDEX total ON commandbus.process ((state->>'total'))")
    await limited.begin()
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        await limited.repository.save_many([secret_process(), new_process(process.process_id)], limited.conn)
    assert caught.value.process_id == process.process_id


# What COPY cannot do, INSERT does.


@pytest.mark.own_database
async def test_rows_under_row_level_security_are_inserted(
    limited: Limited, engine: AsyncEngine, database_url: str
) -> None:
    execute(
        database_url,
        "ALTER TABLE commandbus.process ENABLE ROW LEVEL SECURITY; ALTER TABLE commandbus.process_audit ENABLE ROW "
        "LEVEL SECURITY; CREATE POLICY all_rows ON commandbus.process USING (true) WITH CHECK (true);"
        "CREATE POLICY all_rows ON commandbus.process_audit USING (true) WITH CHECK (true)",
    )
    await limited.begin()
    processes = list(new_processes(BATCH + 1))
    assert await limited.repository.save_many(processes, limited.conn) == BATCH + 1
    steps = [(DOMAIN, process.process_id, new_entry()) for process in processes]
    assert await limited.repository.log_many(steps, limited.conn) == BATCH + 1
    await limited.assert_alive(engine, BATCH + 1)


@pytest.mark.own_database
async def test_a_process_that_a_trigger_swallows_does_not_exist_already(
    limited: Limited, engine: AsyncEngine, database_url: str
) -> None:
    execute(database_url, trigger("BEFORE INSERT ON commandbus.process WHEN (NEW.status = 'FAILED')"))
    await limited.begin()
    process = secret_process(status=ProcessStatus.FAILED)
    with pytest.raises(NothingWrittenError) as caught:
        await limited.repository.save_many([new_process(), process, new_process()], limited.conn)
    assert caught.value.process_id == process.process_id
    await limited.assert_alive(engine, 0)


async def test_a_taken_id_that_is_free_by_the_time_that_it_is_looked_for(
    engine: AsyncEngine, database_url: str
) -> None:
    """What was in the way of the first statement is gone when the second looks for it: it is written after all."""
    repository: Repository = PostgresProcessRepository(engine)
    process = new_process()
    await repository.save(process)
    seen: list[str] = []

    def clear_the_way(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)
        if len([each for each in seen if "given" in each]) == 2:
            execute(database_url, "DELETE FROM commandbus.process WHERE domain = 'orders'")

    event.listen(engine.sync_engine, "before_cursor_execute", clear_the_way)
    processes = [new_process(), new_process(process.process_id), new_process()]
    assert await repository.save_many(processes) == 3
    event.remove(engine.sync_engine, "before_cursor_execute", clear_the_way)
    assert await numbers(engine) == (3, 0)
