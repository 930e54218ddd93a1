"""What a call used is freed when the call ends, not when the garbage collector runs; greenlets too."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessLockedError,
    ProcessMetadata,
    ProcessRepositoryError,
    ProcessStatus,
    ReplyOutcome,
    SchemaTooOldError,
)
from commandbus_process.postgres._transaction import translated_errors
from tests.support.databases import async_url, execute
from tests.support.items import DOMAIN, new_process
from tests.support.triggers import trigger

Repository = PostgresProcessRepository[JsonObject]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(database_url))
    yield engine
    await engine.dispose()


class Big:
    """Something that a caller has in a variable while it calls."""


Call = Callable[[Repository, ProcessMetadata, AsyncConnection | None], Awaitable[object]]


def command() -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="Charge")


REFUSED: dict[str, Call] = {
    "save": lambda repository, process, conn: repository.save(process, conn),
    "update": lambda repository, process, conn: repository.update(stale(process), conn),
    "log_step": lambda repository, _, conn: repository.log_step(DOMAIN, uuid4(), command(), conn),
    "update_step_reply": lambda repository, process, conn: repository.update_step_reply(
        DOMAIN, process.process_id, *unknown_reply(), conn
    ),
    "advance": lambda repository, process, conn: repository.advance(stale(process), conn, sent=[command(), command()]),
    "advance on a reply": lambda repository, process, conn: repository.advance(process, conn, reply=replied()),
    "save of what cannot be stored": lambda repository, _, conn: repository.save(
        new_process().model_copy(update={"state": {"a": float("nan")}}), conn
    ),
}
ANSWERED: dict[str, Call] = {
    "save": lambda repository, _, conn: repository.save(new_process(), conn),
    "get_by_id": lambda repository, process, conn: repository.get_by_id(DOMAIN, process.process_id, conn),
    "find_by_status": lambda repository, _, conn: repository.find_by_status(DOMAIN, list(ProcessStatus), conn),
    "get_audit_trail": lambda repository, process, conn: repository.get_audit_trail(DOMAIN, process.process_id, conn),
}
SENT = {name: call for name, call in {**REFUSED, **ANSWERED}.items() if name != "save of what cannot be stored"}


def stale(process: ProcessMetadata) -> ProcessMetadata:
    return process.model_copy(update={"version": 77})


def replied() -> ProcessAuditEntry:
    return command().model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS})


def unknown_reply() -> tuple[UUID, ProcessAuditEntry]:
    reply = replied()
    return reply.command_id, reply


@contextmanager
def without_the_garbage_collector() -> Generator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def is_freed(
    call: Call, engine: AsyncEngine, process: ProcessMetadata, error: type[Exception], *, on_connection: bool
) -> bool:
    """Whether nothing refers to the caller's variable any more when the error has been handled."""

    async def caller() -> weakref.ref[Big]:
        big = Big()
        repository = Repository(engine)
        try:
            if on_connection:
                async with engine.connect() as conn:
                    await call(repository, process, conn)
            else:
                await call(repository, process, None)
        except error:
            return weakref.ref(big)
        raise AssertionError

    await caller()  # what is made once stays
    with without_the_garbage_collector():
        return (await caller())() is None


@pytest.mark.parametrize("on_connection", [False, True])
@pytest.mark.parametrize("call", REFUSED)
async def test_after_an_error_of_ours(
    engine: AsyncEngine, process: ProcessMetadata, call: str, *, on_connection: bool
) -> None:
    await Repository(engine).save(process)
    assert await is_freed(REFUSED[call], engine, process, ProcessRepositoryError, on_connection=on_connection)


@pytest.mark.own_database
@pytest.mark.parametrize("on_connection", [False, True])
@pytest.mark.parametrize("call", SENT)
async def test_after_an_error_of_the_server(
    engine: AsyncEngine, database_url: str, process: ProcessMetadata, call: str, *, on_connection: bool
) -> None:
    await Repository(engine).save(process)
    columns = {"commandbus.process": "process_type", "commandbus.process_audit": "step_name"}
    execute(database_url, ";".join(f"ALTER TABLE {table} RENAME {column} TO gone" for table, column in columns.items()))
    if call.startswith(("update", "advance")):
        execute(database_url, "ALTER TABLE commandbus.process RENAME domain TO gone_too")
        execute(database_url, "ALTER TABLE commandbus.process_audit RENAME domain TO gone_too")
    assert await is_freed(SENT[call], engine, process, SchemaTooOldError, on_connection=on_connection)


@pytest.mark.own_database
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "54000", "23514"])
async def test_after_an_error_of_the_server_that_we_have_a_name_for(
    engine: AsyncEngine, database_url: str, process: ProcessMetadata, sqlstate: str
) -> None:
    await Repository(engine).save(process)
    execute(database_url, trigger("BEFORE UPDATE ON commandbus.process", f"RAISE 'no' USING ERRCODE = '{sqlstate}';"))

    async def update(repository: Repository, process: ProcessMetadata, conn: AsyncConnection | None) -> None:
        await repository.update(process, conn)

    error = DBAPIError if sqlstate == "23514" else ProcessRepositoryError
    assert await is_freed(update, engine, process, error, on_connection=True)


async def test_after_an_error_of_a_statement_for_many(engine: AsyncEngine, process: ProcessMetadata) -> None:
    async def locked(_repository: Repository, _process: ProcessMetadata, conn: AsyncConnection | None) -> None:
        assert conn is not None
        with translated_errors():
            await conn.execute(text("DO $$ BEGIN RAISE 'no' USING ERRCODE = '55P03'; END $$"))

    assert await is_freed(locked, engine, process, ProcessLockedError, on_connection=True)


GREENLET: Any = import_module("greenlet").greenlet  # the package has no types


def greenlets() -> int:
    gc.collect()
    return sum(isinstance(each, GREENLET) for each in gc.get_objects())


async def burst(engine: AsyncEngine, process: ProcessMetadata, calls: int) -> None:
    repository = Repository(engine)
    found = await asyncio.gather(*(repository.get_by_id(DOMAIN, process.process_id) for _ in range(calls)))
    assert found == [process] * calls


async def test_a_burst_of_calls_leaves_no_greenlet(engine: AsyncEngine, process: ProcessMetadata) -> None:
    await Repository(engine).save(process)
    await burst(engine, process, 1)
    before = greenlets()
    await burst(engine, process, 1000)
    assert greenlets() == before


async def test_a_burst_with_errors_and_cancellations_leaves_no_greenlet(
    engine: AsyncEngine, process: ProcessMetadata
) -> None:
    repository = Repository(engine)
    await repository.save(process)
    await burst(engine, process, 1)
    before = greenlets()
    tasks = [asyncio.ensure_future(repository.save(process)) for _ in range(500)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    cancelled = [task.cancel() for task in tasks[::2]]
    assert any(cancelled)
    await asyncio.wait(tasks)
    assert all(task.cancelled() or task.exception() is not None for task in tasks)
    tasks.clear()
    assert greenlets() == before


def in_a_thread_of_its_own(work: Callable[[], Coroutine[Any, Any, None]]) -> Awaitable[None]:
    """Run it on an event loop in a thread that ends afterwards."""

    def run() -> None:
        asyncio.run(work())

    def start_and_wait() -> None:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(run).result()

    return asyncio.to_thread(start_and_wait)


async def test_threads_that_end_leave_no_greenlets(database_url: str, process: ProcessMetadata) -> None:
    calls, threads = 100, 5

    async def work() -> None:
        engine = create_async_engine(async_url(database_url))
        await burst(engine, process, calls)
        await engine.dispose()

    engine = create_async_engine(async_url(database_url))
    await Repository(engine).save(process)
    await engine.dispose()
    before = greenlets()
    for _ in range(threads):
        await in_a_thread_of_its_own(work)
    # Each thread has a greenlet of its own that is no call's, and that greenlet frees when it gets round to it.
    assert greenlets() <= before + threads


async def test_results_arrive_at_the_task_that_asked(database_url: str) -> None:
    """Also if a task begins in the middle of another, as an eager one does (Python 3.12 and newer)."""

    async def work() -> None:
        factory: Any = getattr(asyncio, "eager_task_factory", None)
        asyncio.get_running_loop().set_task_factory(factory)
        engine = create_async_engine(async_url(database_url))
        repository, processes = Repository(engine), [new_process() for _ in range(100)]
        try:
            await asyncio.gather(*(repository.save(process) for process in processes))
            for _ in range(5):
                found = await asyncio.gather(
                    *(repository.get_by_id(DOMAIN, process.process_id) for process in processes)
                )
                assert found == processes
        finally:
            await engine.dispose()

    await in_a_thread_of_its_own(work)
