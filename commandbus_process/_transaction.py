"""Whose transaction a method runs in, and what becomes of it when PostgreSQL finds a conflict."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar, cast
from uuid import UUID
from weakref import ReferenceType, WeakKeyDictionary, ref

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

from commandbus_process.errors import (
    ConcurrentUpdateError,
    DeadlockError,
    InvalidInputError,
    ProcessLockedError,
    ProcessRepositoryError,
    TransactionConflictError,
)

ResultT = TypeVar("ResultT")

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"

# A transaction of our own that lost a race is run again. Each failure means that another transaction got on, so this
# bound is reached only by a worker that loses that often in a row; it is there to end.
ATTEMPTS = 50


async def run(
    engine: AsyncEngine,
    conn: AsyncConnection | None,
    work: Callable[[Connection], ResultT],
    key: tuple[str, UUID] | None = None,
    expected_version: int | None = None,
) -> ResultT:
    """Run `work` in the caller's transaction, left as it is, or without one.

    The only place that decides where a connection comes from, and the only one that looks at the server's errors. What
    PostgreSQL aborts for another transaction's sake is run again, so that the answer is the same under every isolation
    level; on the caller's connection it cannot be, since the transaction's first half is the caller's.

    Args:
        engine: Where a connection is borrowed from if there is no `conn`.
        conn: The caller's connection, which is never begun, committed, rolled back or closed here.
        work: What to do. It may be called more than once. Without `conn`, each of its statements takes effect by
            itself, so that only one of them may write.
        key: The process that it is about, if it is about one.
        expected_version: The version that the process is expected to have.

    Raises:
        ConcurrentUpdateError: The process was changed by another transaction, and PostgreSQL aborted this one.
        DeadlockError: This transaction waited for one that waited for it, and PostgreSQL aborted this one.
        ProcessLockedError: A `lock_timeout` ended the wait for the process.
        TransactionConflictError: As ConcurrentUpdateError, where `work` is not about a single process.
    """
    check_connection(conn)
    remaining = ATTEMPTS if conn is None else 1
    while True:
        remaining -= 1
        try:
            if conn is None:
                return await greenlet_spawn(_borrow_and_run, engine.sync_engine, work)
            if conn.sync_connection is None:
                return await conn.run_sync(work)  # which says what is wrong: it was not started, or is closed
            check_not_in_use(conn.sync_connection)
            return await greenlet_spawn(work, conn.sync_connection)
        except DBAPIError as error:
            if remaining and sqlstate_of(error) in {SERIALIZATION_FAILURE, DEADLOCK_DETECTED}:
                continue
            conflict = conflict_of(error, key, expected_version)
            if conflict is None:
                raise
            raise conflict from error


def check_connection(conn: AsyncConnection | None) -> None:
    """Refuse what is no connection, with a hint.

    Raises:
        TypeError: It is something else, a session for example.
    """
    if conn is not None and not isinstance(conn, AsyncConnection):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(
            f"conn must be an AsyncConnection, not {type(conn).__name__}; an AsyncSession has one: "
            "await session.connection()"
        )


@asynccontextmanager
async def unit(engine: AsyncEngine, conn: AsyncConnection | None) -> AsyncGenerator[AsyncConnection]:
    """Give a connection on which several statements take effect together or not at all.

    In the caller's transaction that is a savepoint, which leaves the transaction as it was before, and alive. Nothing
    is run again: what the statements were made from can be read only once.

    Raises:
        InvalidInputError: The caller's connection is in autocommit, where statements cannot take effect together. Or
            another task has a savepoint of this library open on it.
        DeadlockError, TransactionConflictError: PostgreSQL refused to commit because of a concurrent transaction.
    """
    check_connection(conn)
    if conn is None:
        async with engine.connect() as connection:
            was_in_autocommit = await connection.run_sync(_end_autocommit)
            try:
                async with connection.begin() as transaction:
                    yield connection
                    with conflicts_told():
                        await transaction.commit()
            finally:
                if was_in_autocommit and not connection.invalidated:
                    with suppress(psycopg.Error):  # it is closed then; what was committed stays
                        await connection.run_sync(_set_autocommit, on=True)
    elif await conn.run_sync(is_in_autocommit):
        raise InvalidInputError("conn", "is in autocommit, where several statements cannot be one unit")
    else:
        with savepoint_open(cast("Connection", conn.sync_connection)):
            async with conn.begin_nested():
                yield conn


# Which task has a savepoint of this library open on which connection. The task is weak: its frames hold the connection,
# which would otherwise keep itself alive in here.
_savepoints: WeakKeyDictionary[Connection, ReferenceType[asyncio.Task[Any]]] = WeakKeyDictionary()


@contextmanager
def savepoint_open(connection: Connection) -> Generator[None]:
    """Reserve a connection for the current task while the library has a savepoint open on it.

    What another task writes meanwhile would be gone after ROLLBACK TO SAVEPOINT, though its call returned. The same
    task may go on: the items of a bulk call may come from the connection.

    Raises:
        InvalidInputError: Another task has one open.
    """
    check_not_in_use(connection)
    before = _savepoints.get(connection)
    _reserve(connection)
    try:
        yield
    finally:
        if before is not None:
            _savepoints[connection] = before
        else:
            _savepoints.pop(connection, None)


def _reserve(connection: Connection) -> None:
    task = asyncio.current_task()
    if task is not None:
        _savepoints[connection] = ref(task)


def check_not_in_use(connection: Connection) -> None:
    """Refuse a connection on which the library has a savepoint open for another task.

    Raises:
        InvalidInputError: It has one.
    """
    opened_by = _savepoints.get(connection)
    task = None if opened_by is None else opened_by()
    if task is not None and task is not asyncio.current_task():
        raise InvalidInputError("conn", "is in use by another call")


def _end_autocommit(connection: Connection) -> bool:
    """Leave autocommit, and return whether the connection was in it.

    By hand: SQLAlchemy's option resets a connection to the dialect's default, not to what `connect_args` had set.
    """
    was_in_autocommit = is_in_autocommit(connection)
    if was_in_autocommit:
        _set_autocommit(connection, on=False)
    return was_in_autocommit


def _set_autocommit(connection: Connection, *, on: bool) -> None:
    """Set the mode of a borrowed connection, or close it, so that nobody gets it in another mode."""
    # SQLAlchemy's synchronous face of psycopg's connection.
    adapted: Any = connection.connection.dbapi_connection
    try:
        adapted.autocommit = on
    except BaseException:
        # If the event loop was kept busy, psycopg lets other tasks run here, and a cancellation can come.
        connection.invalidate()
        raise


@contextmanager
def conflicts_told() -> Generator[None]:
    """Raise the errors of this package for the conflicts that PostgreSQL finds.

    Raises:
        DeadlockError, TransactionConflictError: It aborted the transaction because of a concurrent one.
        ProcessLockedError: A `lock_timeout` ended the wait for a process.
    """
    try:
        yield
    except DBAPIError as error:
        conflict = conflict_of(error, None, None)
        if conflict is None:
            raise
        try:
            raise conflict from error
        finally:
            del conflict  # its traceback has this frame: they would be a cycle


def is_in_autocommit(connection: Connection) -> bool:
    """Whether each statement takes effect by itself."""
    return cast("psycopg.AsyncConnection[Any]", connection.connection.driver_connection).autocommit


def _borrow_and_run(engine: Engine, work: Callable[[Connection], ResultT]) -> ResultT:
    """Run `work` on a borrowed connection in autocommit: a statement is atomic by itself, in one round trip, not three.

    SQLAlchemy's events of a transaction are there all the same, its BEGIN and COMMIT send nothing. The connection goes
    back as it came, or, where that cannot be, is closed.
    """
    with engine.connect() as connection, connection.begin():
        borrowed = connection.connection
        if not _can_autocommit(cast("psycopg.AsyncConnection[Any]", borrowed.driver_connection)):
            return work(connection)
        # SQLAlchemy's synchronous face of psycopg's connection.
        adapted: Any = borrowed.dbapi_connection
        try:
            adapted.autocommit = True
            return work(connection)
        finally:
            if not connection.invalidated:
                _set_transactional(connection, adapted)


def _set_transactional(connection: Connection, adapted: Any) -> None:  # noqa: ANN401 - SQLAlchemy has no public type
    """Give the borrowed connection back its transactions, or close it, so that nobody gets it as it is."""
    try:
        adapted.autocommit = False
    except psycopg.Error:
        connection.invalidate()
    except BaseException:
        # Where the event loop was kept busy, psycopg lets others have their turn here; a cancellation can come then.
        connection.invalidate()
        raise


def _can_autocommit(driver: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a transaction would be nothing but the one statement, so that it can be left out.

    It is more where the engine's owner has set what BEGIN says (serializable transactions are checked against each
    other only, and a read-only one refuses to write), and where something was executed when it began (an event's SET
    LOCAL, for example).
    """
    return (
        not driver.autocommit
        and driver.isolation_level is not psycopg.IsolationLevel.SERIALIZABLE
        and not driver.read_only
        and not driver.deferrable
        and driver.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
    )


def sqlstate_of(error: DBAPIError) -> str | None:
    """Return the server's code, if the error comes from the server."""
    return getattr(error.orig, "sqlstate", None)


def conflict_of(
    error: DBAPIError, key: tuple[str, UUID] | None, expected_version: int | None
) -> ProcessRepositoryError | None:
    """Return the error of this package for a conflict that PostgreSQL found; `None` if it is something else."""
    sqlstate = sqlstate_of(error)
    if sqlstate == DEADLOCK_DETECTED:
        return DeadlockError()
    if sqlstate == SERIALIZATION_FAILURE:
        return TransactionConflictError(sqlstate) if key is None else ConcurrentUpdateError(*key, expected_version)
    if sqlstate == LOCK_NOT_AVAILABLE:
        return ProcessLockedError() if key is None else ProcessLockedError(*key)
    return None
