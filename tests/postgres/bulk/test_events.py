"""COPY is a statement for SQLAlchemy's events and its log: spans and logs have it, and neither is given a row."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import PostgresProcessRepository, ProcessAlreadyExistsError, ProcessMetadata
from tests.support.databases import execute
from tests.support.items import BATCH, DOMAIN, for_process, new_entry, new_process, new_processes, numbers
from tests.support.triggers import trigger

Repository = PostgresProcessRepository[Any]
Listen = Callable[..., None]
CARD = "card-4111-1111"
COPY_PROCESSES, COPY_STEPS = 'COPY "commandbus"."process" (', 'COPY "commandbus"."process_audit" ('


class RefusedError(Exception):
    pass


def secret_process(process: ProcessMetadata | None = None) -> ProcessMetadata:
    return (process or new_process()).model_copy(update={"state": {"card": CARD}})


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Listens until the end of the test."""
    with ExitStack() as stack:

        def listen(target: Any, name: str, listener: Callable[..., object], **options: bool) -> None:
            event.listen(target, name, listener, **options)
            stack.callback(event.remove, target, name, listener)

        yield listen


class Seen:
    """The COPYs that a listener was told of."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.shown = ""

    def before(self, *told: Any) -> None:
        self._add("before", told)

    def after(self, *told: Any) -> None:
        self._add("after", told)

    def _add(self, when: str, told: tuple[Any, ...]) -> None:
        _connection, cursor, statement, parameters, context, executemany = told
        if "COPY" in statement:
            self.calls.append((when, statement.partition("(")[0] + "("))
            self.shown += repr((cursor, statement, parameters, context, dict(context.execution_options)))
            assert not parameters
            assert not executemany


TARGETS: dict[str, Callable[[AsyncEngine, AsyncConnection | None], object]] = {
    "the engine": lambda engine, _: engine.sync_engine,
    "the connection": lambda engine, conn: engine.sync_engine if conn is None else conn.sync_connection,
    "all engines": lambda _engine, _conn: Engine,
    "all connections": lambda _engine, _conn: Connection,
}


@pytest.mark.parametrize("target", TARGETS)
async def test_a_listener_is_told_of_each_copy_before_and_after(
    engine: AsyncEngine, conn: AsyncConnection | None, listen: Listen, target: str
) -> None:
    repository, seen = Repository(engine), Seen()
    listen(TARGETS[target](engine, conn), "before_cursor_execute", seen.before)
    listen(TARGETS[target](engine, conn), "after_cursor_execute", seen.after)
    process = secret_process()
    await repository.save_many([process, *new_processes(BATCH)], conn)
    assert seen.calls == [("before", COPY_PROCESSES), ("after", COPY_PROCESSES)] * 2
    seen.calls.clear()
    entry = new_entry(command_data={"card": CARD})
    await repository.log_many(for_process(DOMAIN, process.process_id, [entry]), conn)
    assert seen.calls == [("before", COPY_STEPS), ("after", COPY_STEPS)]
    assert CARD not in seen.shown
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry]


async def test_a_listener_to_the_engine_and_one_to_the_connection_are_told_once_each(
    engine: AsyncEngine, listen: Listen
) -> None:
    of_engine, of_connection = Seen(), Seen()
    listen(engine.sync_engine, "before_cursor_execute", of_engine.before)
    async with engine.begin() as conn:
        listen(conn.sync_connection, "before_cursor_execute", of_connection.before)
        await Repository(engine).save_many([new_process()], conn)
    assert of_engine.calls == of_connection.calls == [("before", COPY_PROCESSES)]


@pytest.mark.own_database
@pytest.mark.parametrize("given_back", [(), {"total": 7}], ids=["no parameters", "parameters"])
async def test_a_listener_can_rewrite_the_statement(
    engine: AsyncEngine, conn: AsyncConnection | None, database_url: str, listen: Listen, given_back: object
) -> None:
    """As those do that add a comment with the trace. Per cent signs stay, since nothing is put into the text."""
    seen = "CREATE TABLE public.seen (query text); GRANT INSERT ON public.seen TO PUBLIC;"
    body = "INSERT INTO public.seen VALUES (current_query()); RETURN NEW;"
    execute(database_url, seen + trigger("BEFORE INSERT ON commandbus.process", body))

    def comment(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> Any:
        is_copy = "COPY" in statement
        return (f"/* 100% %s %(a)s */ {statement}", given_back) if is_copy else (statement, parameters)

    listen(engine.sync_engine, "before_cursor_execute", comment, retval=True)
    assert await Repository(engine).save_many([new_process()], conn) == 1
    if conn is not None:
        await conn.commit()
    with psycopg.connect(database_url) as connection:
        [(query,)] = connection.execute("SELECT query FROM public.seen").fetchall()
    assert query.startswith(f"/* 100% %s %(a)s */ {COPY_PROCESSES}")


@pytest.mark.own_database
async def test_a_listener_for_errors_is_told_of_a_copy_that_fails(
    engine: AsyncEngine, conn: AsyncConnection | None, database_url: str, listen: Listen
) -> None:
    body = "RAISE 'no room left' USING ERRCODE = 'disk_full';"
    execute(database_url, trigger("BEFORE INSERT ON commandbus.process", body))
    contexts: list[ExceptionContext] = []
    listen(engine.sync_engine, "handle_error", contexts.append)
    with pytest.raises(OperationalError, match="no room left") as caught:
        await Repository(engine).save_many([secret_process()], conn)
    [context] = contexts
    assert context.statement is not None
    assert context.statement.startswith(COPY_PROCESSES)
    assert not context.parameters
    assert context.engine is engine.sync_engine
    assert context.connection is not None
    assert conn is None or context.connection is conn.sync_connection
    assert context.sqlalchemy_exception is caught.value
    assert context.original_exception is caught.value.orig
    assert isinstance(context.original_exception, psycopg.errors.DiskFull)
    assert context.execution_context is not None
    assert not context.is_disconnect
    assert CARD not in f"{context.original_exception} {context.sqlalchemy_exception} {context.statement}"
    if conn is not None:  # the savepoint is rolled back, and the caller's transaction goes on
        assert await Repository(engine).get_by_id(DOMAIN, new_process().process_id, conn) is None


@pytest.mark.own_database
async def test_a_listener_for_errors_can_put_its_own_error_in_the_place_of_the_servers(
    engine: AsyncEngine, conn: AsyncConnection | None, database_url: str, listen: Listen
) -> None:
    body = "RAISE 'no room left' USING ERRCODE = 'disk_full';"
    execute(database_url, trigger("BEFORE INSERT ON commandbus.process", body))
    listen(engine.sync_engine, "handle_error", refuse)
    with pytest.raises(RefusedError):
        await Repository(engine).save_many([new_process()], conn)


def refuse(*_: object) -> None:
    raise RefusedError


async def test_a_conflict_is_told_to_a_listener_for_errors_and_decided_by_the_library(
    engine: AsyncEngine, conn: AsyncConnection | None, listen: Listen
) -> None:
    """Also if the listener has an error of its own for conflicts: COPY is the first try, and INSERT the second."""
    repository = Repository(engine)
    process, entry = new_process(), new_entry()
    await repository.save(process, conn)
    await repository.log_step(DOMAIN, process.process_id, entry, conn)
    sqlstates: list[str | None] = []

    def translate(context: ExceptionContext) -> None:
        sqlstates.append(getattr(context.original_exception, "sqlstate", None))
        raise RefusedError

    listen(engine.sync_engine, "handle_error", translate)
    again = for_process(DOMAIN, process.process_id, [entry, new_entry("charge")])
    assert await repository.log_many(again, conn) == 1
    with pytest.raises(ProcessAlreadyExistsError):
        await repository.save_many([new_process(), new_process(process.process_id)], conn)
    assert sqlstates == ["23505", "23505"]


@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute"])
async def test_an_error_of_a_listener_undoes_the_copy(
    engine: AsyncEngine, conn: AsyncConnection | None, listen: Listen, name: str
) -> None:
    def refuse_copies(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "COPY" in statement:
            raise RefusedError

    repository = Repository(engine)
    listen(engine.sync_engine, name, refuse_copies)
    with pytest.raises(RefusedError):
        await repository.save_many([new_process()], conn)
    if conn is not None:
        await repository.save(new_process(), conn)
        await conn.commit()
    assert await numbers(engine) == (0 if conn is None else 1, 0)


@pytest.mark.parametrize("hide_parameters", [False, True])
async def test_the_log_of_statements_has_each_copy_and_no_row(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, *, hide_parameters: bool
) -> None:
    """As with `echo=True`, which sets the level of the same logger and prints."""
    caplog.set_level(logging.INFO, "sqlalchemy.engine.Engine")
    logging_engine = create_async_engine(engine.url, hide_parameters=hide_parameters)
    try:
        await Repository(logging_engine).save_many([secret_process()])
    finally:
        await logging_engine.dispose()
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if message.startswith(COPY_PROCESSES)]) == 1
    assert CARD not in caplog.text


async def test_engines_with_options_share_one_listener_of_the_library(engine: AsyncEngine, listen: Listen) -> None:
    """So a COPY is run once, however the engine was made and used before, and whichever way it sends statements."""
    seen = Seen()
    listen(engine.sync_engine, "after_cursor_execute", seen.after)
    for each in (engine, engine.execution_options(no_parameters=True), engine):
        await Repository(each).save_many([new_process()])
    assert await numbers(engine) == (3, 0)
    assert seen.calls == [("after", COPY_PROCESSES)] * 3
    assert len(list(engine.dialect.dispatch.do_execute)) == 1
