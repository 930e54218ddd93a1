"""Every method of the repository on one process, every way in which it fails, and every kind of engine."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from uuid import uuid4

import psycopg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
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
from tests.support.databases import async_url, execute
from tests.support.items import new_process

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
ALL = OPERATIONS | ADVANCES | ADVANCES_WITH_SEVERAL


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
    # When SQLAlchemy takes back what an engine's options have set, it sets the default explicitly.
    level = driver.isolation_level or psycopg.IsolationLevel.READ_COMMITTED
    status = driver.info.transaction_status
    return driver.autocommit, level, bool(driver.read_only), bool(driver.deferrable), status


INVALIDATED = ("invalidated",)


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


WAITING: dict[str, Operation] = {
    name: WRITING[name] for name in ("update", "advance", "update_step_reply")
} | ADVANCES_WITH_SEVERAL


async def as_none(awaitable: Awaitable[object]) -> None:
    await awaitable


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
