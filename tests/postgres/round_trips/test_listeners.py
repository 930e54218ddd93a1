"""A host's listeners are called for everything, in the context of its task."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    PostgresProcessRepository,
    SchemaTooOldError,
)
from tests.support.operations import (
    ENGINES,
    OPERATIONS,
    Repository,
    engine_of,
    given_process,
    made,
    stale,
    watched,
    without_columns,
)


def told_events(engine: AsyncEngine) -> list[str]:
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    for name in ("begin", "before_cursor_execute", "after_cursor_execute", "handle_error", "commit", "rollback"):
        event.listen(engine.sync_engine, name, note(name))
    return seen


TASK_NAME = ContextVar("TASK_NAME", default="none")


@pytest.mark.parametrize("on_connection", [False, True])
async def test_a_host_that_instruments_its_engine_finds_the_context_of_the_task(
    application_url: str, plain: Repository, *, on_connection: bool
) -> None:
    """As tracing does: whose statement it is. What a listener leaves there, the task finds."""
    seen: list[tuple[str, str]] = []
    given = await given_process(plain)

    def note(moment: str) -> Callable[..., None]:
        def listener(*_: object) -> None:
            seen.append((moment, TASK_NAME.get()))
            TASK_NAME.set(TASK_NAME.get() + f" {moment}")

        return listener

    async def read(name: str) -> None:
        TASK_NAME.set(name)
        if on_connection:
            async with engine.connect() as conn:
                await repository.get_by_id(*given.key, conn)
        else:
            await repository.get_by_id(*given.key)
        assert TASK_NAME.get() == f"{name} before_cursor_execute after_cursor_execute"

    async with engine_of(made(), application_url) as engine:
        repository = PostgresProcessRepository(engine)
        async with engine.connect():
            pass
        for name in ("before_cursor_execute", "after_cursor_execute"):
            event.listen(engine.sync_engine, name, note(name))
        names = [f"task {number}" for number in range(30)]
        for some in (names[:3], names[3:]):
            await asyncio.gather(*(read(name) for name in some))
        assert TASK_NAME.get() == "none"
        before = [name for moment, name in seen if moment == "before_cursor_execute"]
        after = [name for moment, name in seen if moment == "after_cursor_execute"]
        assert sorted(before) == sorted(names)
        assert sorted(after) == sorted(f"{name} before_cursor_execute" for name in names)


async def test_many_tasks_at_once_and_after_them_others(application_url: str, plain: Repository) -> None:
    """More than the pool has connections; some are cancelled while they wait for one."""
    given = await given_process(plain)
    async with engine_of(made(pool_size=2, max_overflow=0), application_url) as engine:
        repository = PostgresProcessRepository(engine)
        for _ in range(2):
            tasks = [asyncio.ensure_future(repository.get_by_id(*given.key)) for _ in range(150)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert not all(task.done() for task in tasks)
            for task in tasks[1::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[::2] == [given.process] * 75
            for result in results[1::2]:
                assert result == given.process or isinstance(result, asyncio.CancelledError)


EXECUTED = ["before_cursor_execute", "after_cursor_execute"]


@pytest.mark.parametrize("name", ["as it comes", "SERIALIZABLE", "AUTOCOMMIT"])
async def test_listeners_of_an_engine_are_called_for_every_statement(
    application_url: str, shared_url: str, plain: Repository, name: str, subtests: pytest.Subtests
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        async with engine.connect():
            pass
        seen, repository, given = told_events(engine), PostgresProcessRepository(engine), await given_process(plain)
        for method, operation in OPERATIONS.items():
            with subtests.test(method):
                await operation(repository, given, None)
                assert seen == ["begin", *EXECUTED, "commit"]
                seen.clear()
        with pytest.raises(ConcurrentUpdateError):
            await repository.update(stale(given))
        assert seen == ["begin", *EXECUTED, *EXECUTED, "rollback"]
        seen.clear()
        with without_columns(shared_url), pytest.raises(SchemaTooOldError):
            await repository.update(given.process)
        assert seen == ["begin", "before_cursor_execute", "handle_error", "rollback"]


async def test_a_host_that_makes_errors_its_own(application_url: str, shared_url: str, plain: Repository) -> None:
    class HostError(Exception):
        pass

    heard: list[ExceptionContext] = []

    def hear(context: ExceptionContext) -> None:
        heard.append(context)
        raise HostError from context.original_exception

    async with engine_of(made(), application_url) as engine:
        pool, repository, given = watched(engine), PostgresProcessRepository(engine), await given_process(plain)
        event.listen(engine.sync_engine, "handle_error", hear)
        with without_columns(shared_url), pytest.raises(HostError):
            await repository.update(given.process)
        pool.assert_as_it_came(times=1)
        [context] = heard
        assert isinstance(context.original_exception, psycopg.errors.UndefinedColumn)
        assert isinstance(context.sqlalchemy_exception, DBAPIError)
        assert context.statement is not None
        assert context.statement.startswith("UPDATE")
