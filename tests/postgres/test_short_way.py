"""Without a connection, a method is one statement and one round trip, and leaves the engine as its owner made it."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, event, text
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.asyncio.exc import AsyncContextNotStarted
from sqlalchemy.pool import NullPool, StaticPool

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ProcessStatus,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from tests.conftest import new_process
from tests.faults.test_cancellation import Cancelled
from tests.support.databases import Server, as_role, async_url, execute
from tests.support.waiting import is_waiting_for_a_lock
from tests.support.wire import wire_before

Repository = PostgresProcessRepository[JsonObject]

# Seconds after which psycopg finds that the event loop was kept from others (`psycopg.waiting.MAX_BUSY_TIME`, 0.005).
LONG = 0.01


@dataclass
class Given:
    """A process, and two commands of it that nobody has replied to."""

    process: ProcessMetadata
    asked: ProcessAuditEntry
    asked_too: ProcessAuditEntry

    @property
    def key(self) -> tuple[str, Any]:
        return self.process.domain, self.process.process_id


def command() -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="ChargeCard", command_data={"n": 1})


def reply_to(entry: ProcessAuditEntry, outcome: ReplyOutcome = ReplyOutcome.SUCCESS) -> ProcessAuditEntry:
    return entry.model_copy(update={"reply_outcome": outcome})


UNKNOWN = reply_to(command())


async def given_process(repository: Repository) -> Given:
    """A process in a domain of its own."""
    process = new_process().model_copy(update={"domain": uuid4().hex})
    given = Given(process, command(), command())
    await repository.save(given.process)
    for entry in (given.asked, given.asked_too):
        await repository.log_step(*given.key, entry)
    return given


Operation: TypeAlias = Callable[[Repository, Given, AsyncConnection | None], Awaitable[object]]

WRITING: dict[str, Operation] = {
    "save": lambda repository, _, conn: repository.save(new_process(), conn),
    "update": lambda repository, given, conn: repository.update(given.process, conn),
    "log_step": lambda repository, given, conn: repository.log_step(*given.key, command(), conn),
    "update_step_reply": lambda repository, given, conn: repository.update_step_reply(
        *given.key, given.asked.command_id, reply_to(given.asked), conn
    ),
    "advance": lambda repository, given, conn: repository.advance(
        given.process, conn, reply=reply_to(given.asked_too), sent=command()
    ),
}
READING: dict[str, Operation] = {
    "get_by_id": lambda repository, given, conn: repository.get_by_id(*given.key, conn),
    "find_by_status": lambda repository, given, conn: repository.find_by_status(
        given.process.domain, list(ProcessStatus), conn
    ),
    "get_audit_trail": lambda repository, given, conn: repository.get_audit_trail(*given.key, conn),
    "get_completed_steps": lambda repository, given, conn: repository.get_completed_steps(*given.key, conn),
}
OPERATIONS = WRITING | READING
ADVANCES: dict[str, Operation] = {
    "nothing": lambda repository, given, conn: repository.advance(given.process, conn),
    "a reply": lambda repository, given, conn: repository.advance(given.process, conn, reply=reply_to(given.asked)),
    "a command": lambda repository, given, conn: repository.advance(given.process, conn, sent=command()),
}
ADVANCES_WITH_SEVERAL: dict[str, Operation] = {
    "three commands": lambda repository, given, conn: repository.advance(
        given.process, conn, sent=[command() for _ in range(3)]
    ),
    "a reply and two commands": lambda repository, given, conn: repository.advance(
        given.process, conn, reply=reply_to(given.asked), sent=[command(), command()]
    ),
}


@dataclass
class Failure:
    """An operation that ends with an error of the package."""

    error: type[ProcessRepositoryError]
    operation: Operation


def stale(given: Given) -> ProcessMetadata:
    return given.process.model_copy(deep=True, update={"version": 77})


FAILURES = [
    Failure(ProcessAlreadyExistsError, lambda repository, given, conn: repository.save(stale(given), conn)),
    Failure(ConcurrentUpdateError, lambda repository, given, conn: repository.update(stale(given), conn)),
    Failure(ProcessNotFoundError, lambda repository, _, conn: repository.update(new_process(), conn)),
    Failure(ProcessNotFoundError, lambda repository, _, conn: repository.log_step("orders", uuid4(), command(), conn)),
    Failure(
        StepAlreadyLoggedError,
        lambda repository, given, conn: repository.log_step(
            *given.key, given.asked.model_copy(update={"step_name": "other"}), conn
        ),
    ),
    Failure(
        StepNotFoundError,
        lambda repository, given, conn: repository.update_step_reply(*given.key, UNKNOWN.command_id, UNKNOWN, conn),
    ),
    Failure(
        ReplyConflictError,
        lambda repository, given, conn: repository.update_step_reply(
            *given.key, given.asked.command_id, reply_to(given.asked, ReplyOutcome.FAILED), conn
        ),
    ),
    Failure(
        ConcurrentUpdateError, lambda repository, given, conn: repository.advance(stale(given), conn, sent=command())
    ),
    Failure(
        StepAlreadyLoggedError,
        lambda repository, given, conn: repository.advance(given.process, conn, sent=[command(), given.asked]),
    ),
    Failure(
        ReplyConflictError,
        lambda repository, given, conn: repository.advance(
            given.process, conn, reply=reply_to(given.asked), sent=command()
        ),
    ),
]


Maker: TypeAlias = Callable[[str], AsyncEngine]


def made(**options: Any) -> Maker:
    return lambda url: create_async_engine(async_url(url), **options)


def made_with_options(**options: Any) -> Maker:
    return lambda url: create_async_engine(async_url(url)).execution_options(**options)


ENGINES: dict[str, Maker] = {
    "as it comes": made(),
    "READ COMMITTED": made(isolation_level="READ COMMITTED"),
    "REPEATABLE READ": made(isolation_level="REPEATABLE READ"),
    "SERIALIZABLE": made(isolation_level="SERIALIZABLE"),
    "AUTOCOMMIT": made(isolation_level="AUTOCOMMIT"),
    "REPEATABLE READ as an option": made_with_options(isolation_level="REPEATABLE READ"),
    "AUTOCOMMIT as an option": made_with_options(isolation_level="AUTOCOMMIT"),
    "AUTOCOMMIT of the driver": made(connect_args={"autocommit": True}),
    "NullPool": made(poolclass=NullPool),
    "StaticPool": made(poolclass=StaticPool),
    "pool_pre_ping": made(pool_pre_ping=True),
    "no reset": made(pool_reset_on_return=None),
    "skip_autocommit_rollback": made(skip_autocommit_rollback=True),
}


@dataclass
class Pool:
    """What the connections of a pool were when they were borrowed and when they came back."""

    borrowed: list[tuple[object, ...]]
    returned: list[tuple[object, ...]]

    def assert_as_it_came(self, times: int | None = None) -> None:
        """The last one is back, as it was before, with no transaction going on; nothing else was borrowed meanwhile."""
        assert len(self.returned) == len(self.borrowed) > 0
        assert self.returned == self.borrowed
        assert times is None or len(self.returned) == times
        self.borrowed.clear()
        self.returned.clear()


def watched(engine: AsyncEngine) -> Pool:
    pool = Pool([], [])

    def borrow(adapted: Any, *_: object) -> None:
        pool.borrowed.append(state_of(adapted))

    def give_back(adapted: Any, *_: object) -> None:
        pool.returned.append(state_of(adapted))

    event.listen(engine.sync_engine.pool, "checkout", borrow)
    event.listen(engine.sync_engine.pool, "checkin", give_back)
    return pool


def state_of(adapted: Any) -> tuple[object, ...]:
    if adapted is None:
        return INVALIDATED
    driver = cast("psycopg.AsyncConnection[Any]", adapted.driver_connection)
    # SQLAlchemy, taking back what an engine's options have set, says what it was where nothing was said before.
    level = driver.isolation_level or psycopg.IsolationLevel.READ_COMMITTED
    status = driver.info.transaction_status
    return driver.autocommit, level, bool(driver.read_only), bool(driver.deferrable), status


INVALIDATED = ("invalidated",)


@pytest.fixture
def application_url(shared_url: str, newest_server: Server) -> str:
    """One database for all tests of this module; each has a domain of its own."""
    return as_role(shared_url, newest_server.application)


@pytest.fixture
async def administrator(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


@pytest.fixture
def plain(administrator: AsyncEngine) -> Repository:
    """A repository on another engine, for what a test needs around what it is about."""
    return PostgresProcessRepository(administrator)


@asynccontextmanager
async def engine_of(maker: Maker, url: str) -> AsyncGenerator[AsyncEngine]:
    engine = maker(url)
    try:
        yield engine
    finally:
        await engine.dispose()


@contextmanager
def without_columns(url: str) -> Generator[None]:
    """Make every statement of the repository fail at the server."""
    columns = {"commandbus.process": "status", "commandbus.process_audit": "reply_outcome"}
    execute(url, ";".join(f"ALTER TABLE {table} RENAME {column} TO gone" for table, column in columns.items()))
    try:
        yield
    finally:
        execute(url, ";".join(f"ALTER TABLE {table} RENAME gone TO {column}" for table, column in columns.items()))


@pytest.mark.parametrize("name", ["as it comes", "REPEATABLE READ", "AUTOCOMMIT", "AUTOCOMMIT as an option"])
async def test_one_statement_and_one_round_trip_without_a_connection(
    application_url: str, plain: Repository, name: str
) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(ENGINES[name], url) as engine:
        repository = PostgresProcessRepository(engine)
        for operation in {**OPERATIONS, **ADVANCES, **ADVANCES_WITH_SEVERAL}.values():
            given = await given_process(plain)
            async with engine.connect():  # so that what is said when a connection is made is not counted
                pass
            wire.round_trips.clear()
            await operation(repository, given, None)
            [tags] = wire.round_trips
            [tag] = tags
            assert tag.split()[0] in {"INSERT", "SELECT", "UPDATE"}


async def test_one_statement_and_one_round_trip_on_the_callers_connection(
    application_url: str, plain: Repository
) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(made(), url) as engine:
        repository = PostgresProcessRepository(engine)
        for operation in {**OPERATIONS, **ADVANCES}.values():
            given = await given_process(plain)
            async with engine.connect() as conn:
                await conn.execute(text("SELECT"))
                wire.round_trips.clear()
                await operation(repository, given, conn)
                [tags] = wire.round_trips
                [tag] = tags
                assert tag.split()[0] in {"INSERT", "SELECT", "UPDATE"}


async def test_several_commands_on_the_callers_connection_cost_a_savepoint(
    application_url: str, plain: Repository
) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(made(), url) as engine:
        repository = PostgresProcessRepository(engine)
        for operation in ADVANCES_WITH_SEVERAL.values():
            given = await given_process(plain)
            async with engine.connect() as conn:
                await conn.execute(text("SELECT"))
                wire.round_trips.clear()
                await operation(repository, given, conn)
                assert wire.round_trips == [["SAVEPOINT"], ["SELECT 1"], ["RELEASE"]]


async def test_a_callers_connection_in_autocommit_needs_no_savepoint(application_url: str, plain: Repository) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(ENGINES["AUTOCOMMIT"], url) as engine:
        repository = PostgresProcessRepository(engine)
        for operation in {**OPERATIONS, **ADVANCES, **ADVANCES_WITH_SEVERAL}.values():
            given = await given_process(plain)
            async with engine.connect() as conn:
                wire.round_trips.clear()
                await operation(repository, given, conn)
                assert [len(tags) for tags in wire.round_trips] == [1]
                with pytest.raises(StepAlreadyLoggedError):
                    await repository.advance(given.process, conn, sent=[command(), given.asked])


async def test_a_serializable_engine_has_its_transaction(application_url: str, plain: Repository) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(ENGINES["SERIALIZABLE"], url) as engine:
        repository = PostgresProcessRepository(engine)
        given = await given_process(plain)
        async with engine.connect():
            pass
        wire.round_trips.clear()
        await repository.get_by_id(*given.key)
        assert wire.round_trips == [["BEGIN"], ["SELECT 1"], ["COMMIT"]]


@pytest.mark.parametrize("name", ENGINES)
async def test_the_connection_goes_back_as_it_came(
    application_url: str, shared_url: str, plain: Repository, name: str
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        given = await given_process(plain)
        for operation in OPERATIONS.values():
            await operation(repository, given, None)
            pool.assert_as_it_came(times=1)
        for failure in FAILURES:
            with pytest.raises(failure.error):
                await failure.operation(repository, given, None)
            pool.assert_as_it_came(times=1)
        given = await given_process(plain)
        with without_columns(shared_url):
            for operation in OPERATIONS.values():
                with pytest.raises(DBAPIError) as caught:
                    await operation(repository, given, None)
                assert isinstance(caught.value.orig, psycopg.errors.UndefinedColumn)
                pool.assert_as_it_came(times=1)
        for operation in OPERATIONS.values():
            await operation(repository, given, None)
            pool.assert_as_it_came(times=1)
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            autocommit = cast("psycopg.AsyncConnection[Any]", raw.driver_connection).autocommit
            assert autocommit == name.startswith("AUTOCOMMIT")


WAITING: dict[str, Operation] = {
    name: WRITING[name] for name in ("update", "advance", "update_step_reply")
} | ADVANCES_WITH_SEVERAL


@pytest.mark.parametrize("name", ENGINES)
async def test_the_connection_of_a_cancelled_task_does_not_come_back_changed(
    application_url: str, administrator: AsyncEngine, plain: Repository, name: str
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        for operation in WAITING.values():
            given = await given_process(plain)
            async with administrator.connect() as holder:
                await holder.execute(text("LOCK TABLE commandbus.process, commandbus.process_audit"))
                task = asyncio.ensure_future(operation(repository, given, None))
                await is_waiting_for_a_lock(administrator)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
            assert len(pool.returned) == len(pool.borrowed) == 1
            assert pool.returned in ([INVALIDATED], pool.borrowed)
            pool.borrowed.clear()
            pool.returned.clear()
            assert await plain.get_by_id(*given.key) == given.process
            assert await plain.get_audit_trail(*given.key) == [given.asked, given.asked_too]
            for again in OPERATIONS.values():
                await again(repository, given, None)
                pool.assert_as_it_came(times=1)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("method", ["update", "advance", "get_by_id"])
async def test_a_cancellation_at_any_point_does_not_bring_back_a_changed_connection(
    application_url: str, plain: Repository, method: str, *, busy: bool
) -> None:
    """Where the event loop was kept busy, psycopg lets others have their turn at more moments than usual."""

    def keep_busy(*_: object) -> None:
        time.sleep(LONG)

    async with engine_of(made(), application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        if busy:
            event.listen(engine.sync_engine, "begin", keep_busy)
            event.listen(engine.sync_engine, "after_cursor_execute", keep_busy)
        for delay in range(1 if busy else 6):  # turns of the loop, in which what is awaited may come
            point, is_over = 0, False
            while not is_over:
                point += 1
                given = await given_process(plain)
                cancelled = Cancelled(as_none(OPERATIONS[method](repository, given, None)), point, delay)
                await asyncio.wait([asyncio.ensure_future(as_none(cancelled))])
                is_over = cancelled.waits < point
                assert len(pool.returned) == len(pool.borrowed)
                for borrowed, returned in zip(pool.borrowed, pool.returned, strict=True):
                    assert returned in (borrowed, INVALIDATED)
                    assert borrowed[0] is False
            assert point > 1


async def test_a_connection_that_cannot_be_handed_back_as_it_came_is_closed(
    application_url: str, plain: Repository
) -> None:
    """Here a listener has begun a transaction behind the back of all others; what was done in it is gone, and told."""

    def begin(_connection: object, cursor: Any, *_: object) -> None:
        cursor.execute("BEGIN")

    async with engine_of(made(), application_url) as engine:
        pool, repository, given = watched(engine), PostgresProcessRepository(engine), await given_process(plain)
        before = given.process.model_copy(deep=True)
        event.listen(engine.sync_engine, "before_cursor_execute", begin)
        with pytest.raises(InvalidRequestError):
            await repository.update(given.process)
        assert pool.returned == [INVALIDATED]
        assert given.process == before == await plain.get_by_id(*given.key)
        event.remove(engine.sync_engine, "before_cursor_execute", begin)
        pool.borrowed.clear()
        pool.returned.clear()
        await repository.update(given.process)
        pool.assert_as_it_came(times=1)


async def test_a_connection_that_was_not_started_is_told(application_url: str, plain: Repository) -> None:
    given = await given_process(plain)
    async with engine_of(made(), application_url) as engine:
        repository = PostgresProcessRepository(engine)
        with pytest.raises(AsyncContextNotStarted):
            await repository.get_by_id(*given.key, engine.connect())
        async with engine.connect() as conn:
            pass
        with pytest.raises(InvalidRequestError):
            await repository.get_by_id(*given.key, conn)


async def as_none(awaitable: Awaitable[object]) -> None:
    await awaitable


@pytest.mark.parametrize("name", ["as it comes", "AUTOCOMMIT", "NullPool", "StaticPool", "pool_pre_ping"])
async def test_a_connection_that_is_cut_in_the_middle(
    application_url: str, administrator: AsyncEngine, plain: Repository, name: str
) -> None:
    """The error is SQLAlchemy's, as it was before the connection was to be handed back; the next call has a new one."""
    cut = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        for operation in WAITING.values():
            given = await given_process(plain)
            async with administrator.connect() as holder:
                await holder.execute(text("LOCK TABLE commandbus.process, commandbus.process_audit"))
                task = asyncio.ensure_future(operation(repository, given, None))
                await is_waiting_for_a_lock(administrator)
                await holder.execute(cut)
                [error] = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(error, DBAPIError)
            assert error.connection_invalidated
            assert isinstance(error.orig, psycopg.errors.AdminShutdown)
            assert pool.returned == [INVALIDATED]
            pool.borrowed.clear()
            pool.returned.clear()
            await operation(repository, given, None)
            pool.assert_as_it_came(times=1)


def shown(engine: AsyncEngine, setting: str) -> list[str]:
    """Note what a setting is, each time that a statement of ours is executed, on its connection and just before it."""
    seen: list[str] = []

    def show(_connection: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("SET"):
            return  # the test's own
        cursor.execute(f"SHOW {setting}")
        [value] = cursor.fetchone()
        seen.append(value)

    event.listen(engine.sync_engine, "before_cursor_execute", show)
    return seen


@pytest.mark.parametrize(
    ("maker", "setting", "value"),
    [
        (ENGINES["SERIALIZABLE"], "transaction_isolation", "serializable"),
        (made_with_options(isolation_level="SERIALIZABLE"), "transaction_isolation", "serializable"),
        (made_with_options(postgresql_readonly=True), "transaction_read_only", "on"),
        (made_with_options(postgresql_deferrable=True), "transaction_deferrable", "on"),
    ],
)
async def test_what_the_engines_owner_has_set_for_its_transactions_is_in_force(
    application_url: str, plain: Repository, maker: Maker, setting: str, value: str
) -> None:
    async with engine_of(maker, application_url) as engine:
        repository, seen, given = PostgresProcessRepository(engine), shown(engine, setting), await given_process(plain)
        for operation in READING.values() if setting == "transaction_read_only" else OPERATIONS.values():
            await operation(repository, given, None)
            assert seen == [value]
            seen.clear()


async def test_a_read_only_engine_writes_nothing(application_url: str, plain: Repository) -> None:
    given = await given_process(plain)
    async with engine_of(made_with_options(postgresql_readonly=True), application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        for operation in {**WRITING, **ADVANCES, **ADVANCES_WITH_SEVERAL}.values():
            with pytest.raises(DBAPIError) as caught:
                await operation(repository, given, None)
            assert isinstance(caught.value.orig, psycopg.errors.ReadOnlySqlTransaction)
            pool.assert_as_it_came(times=1)
    assert await plain.find_by_status(given.process.domain, list(ProcessStatus)) == [given.process]
    assert await plain.get_audit_trail(*given.key) == [given.asked, given.asked_too]


async def test_what_is_set_when_a_transaction_begins_is_in_force(application_url: str, plain: Repository) -> None:
    def set_tenant(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL application.tenant = 'seven'")

    async with engine_of(made(), application_url) as engine:
        pool, repository, seen = watched(engine), PostgresProcessRepository(engine), shown(engine, "application.tenant")
        event.listen(engine.sync_engine, "begin", set_tenant)
        given = await given_process(plain)
        for operation in OPERATIONS.values():
            await operation(repository, given, None)
            assert seen == ["seven"]
            seen.clear()
            pool.assert_as_it_came(times=1)
    assert len(await plain.get_audit_trail(*given.key)) == 4
    assert given.process == await plain.get_by_id(*given.key)


@pytest.mark.parametrize("moment", ["connect", "checkout"])
@pytest.mark.parametrize("committed", [True, False])
async def test_what_is_set_when_a_connection_is_made_or_borrowed_is_in_force(
    application_url: str, plain: Repository, moment: str, *, committed: bool
) -> None:
    """Also where the listener leaves a transaction open: the statement is in it, and committed with it."""

    def set_tenant(adapted: Any, *_: object) -> None:
        cursor = adapted.cursor()
        cursor.execute("SET application.tenant = 'seven'")
        cursor.close()
        if committed:
            adapted.commit()

    async with engine_of(made(), application_url) as engine:
        event.listen(engine.sync_engine.pool, moment, set_tenant)
        pool, repository, seen = watched(engine), PostgresProcessRepository(engine), shown(engine, "application.tenant")
        given = await given_process(plain)
        for operation in OPERATIONS.values():
            await operation(repository, given, None)
            assert seen == ["seven"]
            seen.clear()
            [(autocommit, *_, status)] = pool.returned
            assert (autocommit, status) == (False, TransactionStatus.IDLE)
            pool.returned.clear()
    assert len(await plain.get_audit_trail(*given.key)) == 4
    assert given.process == await plain.get_by_id(*given.key)


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
async def test_a_host_that_instruments_its_engine_hears_of_everything(
    application_url: str, shared_url: str, plain: Repository, name: str
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        async with engine.connect():
            pass
        seen, repository, given = told_events(engine), PostgresProcessRepository(engine), await given_process(plain)
        for operation in OPERATIONS.values():
            await operation(repository, given, None)
            assert seen == ["begin", *EXECUTED, "commit"]
            seen.clear()
        with pytest.raises(ConcurrentUpdateError):
            await repository.update(stale(given))
        assert seen == ["begin", *EXECUTED, *EXECUTED, "rollback"]
        seen.clear()
        with without_columns(shared_url), pytest.raises(DBAPIError):
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


REFUSED_AT_COMMIT: dict[str, str] = {
    "save": "INSERT ON commandbus.process",
    "update": "UPDATE ON commandbus.process",
    "log_step": "INSERT ON commandbus.process_audit",
    "update_step_reply": "UPDATE ON commandbus.process_audit",
    "advance": "UPDATE ON commandbus.process",
    "advance, its command": "INSERT ON commandbus.process_audit",
    "advance, its reply": "UPDATE ON commandbus.process_audit",
}


@asynccontextmanager
async def refused_at_commit(administrator: AsyncEngine, trigger: str) -> AsyncGenerator[None]:
    function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'too late'; END $$"
    async with administrator.begin() as connection:
        await connection.execute(text(function))
        await connection.execute(
            text(
                f"CREATE CONSTRAINT TRIGGER refuse AFTER {trigger} DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
    try:
        yield
    finally:
        async with administrator.begin() as connection:
            await connection.execute(text("DROP FUNCTION refuse CASCADE"))


@pytest.mark.parametrize("name", ["as it comes", "SERIALIZABLE", "AUTOCOMMIT"])
async def test_what_is_refused_at_commit_is_an_error_and_not_kept(
    application_url: str, administrator: AsyncEngine, plain: Repository, name: str
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository, given = watched(engine), PostgresProcessRepository(engine), await given_process(plain)
        before = given.process.model_copy(deep=True)
        for what, trigger in REFUSED_AT_COMMIT.items():
            async with refused_at_commit(administrator, trigger):
                with pytest.raises(DBAPIError, match="too late"):
                    await WRITING[what.partition(",")[0]](repository, given, None)
            pool.assert_as_it_came(times=1)
            assert given.process == before
            assert await plain.find_by_status(before.domain, list(ProcessStatus)) == [before]
            assert await plain.get_audit_trail(*given.key) == [given.asked, given.asked_too]
