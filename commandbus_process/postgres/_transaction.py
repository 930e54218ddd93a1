"""Run statements on the right connection and in the right transaction, and translate the conflicts PostgreSQL finds."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from traceback import clear_frames
from typing import Any, NoReturn, TypeVar, cast
from uuid import UUID
from weakref import ReferenceType, WeakKeyDictionary, ref

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

from commandbus_process import _log
from commandbus_process.errors import (
    ConcurrentUpdateError,
    DeadlockError,
    InvalidInputError,
    ProcessLockedError,
    ProcessRepositoryError,
    ReadOnlyServerError,
    RecoveryConflictError,
    SchemaTooOldError,
    TransactionConflictError,
)
from commandbus_process.postgres import _standby
from commandbus_process.postgres._database import Database, Tables, check_connection
from commandbus_process.postgres._storable import NOT_IN_ENCODING, PROGRAM_LIMIT_EXCEEDED, encodable_texts, limit_error
from commandbus_process.tables import REVISION

ResultT = TypeVar("ResultT")

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"
_UNDEFINED = frozenset({"42P01", "42703", "3F000"})  # a table, a column or a schema that is not there

RUN_AGAIN = frozenset({SERIALIZATION_FAILURE, DEADLOCK_DETECTED})
"""The SQLSTATEs after which an aborted transaction can succeed when it is run again."""

# Each failure means that another transaction committed. Only a worker that loses 50 races in a row reaches this limit;
# it guarantees that the loop ends.
ATTEMPTS = 50

# In seconds. Without pauses, 20 connections that updated one process under SERIALIZABLE used up all attempts. With
# these pauses, the unluckiest of 400 updates needed 17 attempts.
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1


async def run(
    database: Database,
    conn: AsyncConnection | None,
    work: Callable[[Tables], ResultT],
    key: tuple[str, UUID] | None = None,
    expected_version: int | None = None,
) -> ResultT:
    """Run `work` in the caller's transaction, or without a transaction.

    For methods about one process and for reads, only this function chooses the connection and handles the server's
    errors. Without `conn`, it repeats what PostgreSQL aborts because of a concurrent transaction. So the result is the
    same under every isolation level. On the caller's connection it cannot repeat anything, since the transaction began
    with the caller's own statements.

    Args:
        database: Where the tables are, and the engine from which a connection is borrowed if there is no `conn`.
        conn: The caller's connection. It is never begun, committed, rolled back or closed here.
        work: What to do. It may be called more than once. Without `conn`, each of its statements takes effect by
            itself, so only one of them may write.
        key: The process that `work` is about, if it is about one.
        expected_version: The version that the process is expected to have.

    Raises:
        ConcurrentUpdateError: Another transaction changed the process, and PostgreSQL aborted this one.
        DeadlockError: PostgreSQL aborted this transaction to end a deadlock.
        ProcessLockedError: A `lock_timeout` ended the wait for a lock.
        ReadOnlyServerError: `work` writes or locks, and the server or the transaction is read-only.
        RecoveryConflictError: A standby cancelled `work`; without `conn`, 5 times.
        TransactionConflictError: Like ConcurrentUpdateError, if `work` is not about a single process.
        SchemaTooOldError: The schema lacks a table or a column.
        InvalidInputError: A text has a character that an encoding lacks, or is too long for the server. Or the caller's
            transaction was aborted before. Only a text that is too long is sent to the server, and aborts the caller's
            transaction.
    """
    check_connection(conn)

    def work_on(connection: Connection) -> ResultT:
        return work(database.on(connection))

    attempt = 0
    while True:
        attempt += 1
        try:
            if conn is None:
                return await greenlet_spawn(_borrow_and_run, database.engine.sync_engine, work_on)
            if conn.sync_connection is None:
                return await conn.run_sync(work_on)  # raises SQLAlchemy's error: it was not started, or is closed
            check_not_in_use(conn.sync_connection)
            return await greenlet_spawn(_run_on, conn.sync_connection, work_on)
        except DBAPIError as error:
            sqlstate = get_sqlstate(error)
            in_recovery = _standby.is_recovery_conflict(error)
            attempts = _standby.ATTEMPTS if in_recovery else ATTEMPTS
            if conn is not None or sqlstate not in RUN_AGAIN or attempt >= attempts:
                _raise_translated(error, key, expected_version)
            clear_frames(error.__traceback__)
        except ProcessRepositoryError as error:
            clear_frames(error.__traceback__)
            raise
        _log.retried(attempt, sqlstate, key, in_recovery=in_recovery)
        await pause(attempt)


async def pause(attempt: int, first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> None:
    """Wait, so that the transaction that won can finish. The time is random, so that the losers do not collide again.

    Args:
        attempt: The number of the attempt that lost, from 1.
        first: The maximum pause after the first attempt, in seconds. It doubles with each attempt.
        longest: The maximum of all pauses, in seconds.
    """
    await asyncio.sleep(random.uniform(0, min(longest, first * 2 ** (attempt - 1))))  # noqa: S311 - no secret


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """Yield a connection in a transaction that is committed at the end, and rolled back after an error.

    If the engine's connections are in autocommit, this connection leaves autocommit for the transaction, and is in
    autocommit again when the pool gets it back.
    """
    async with engine.connect() as connection:
        was_in_autocommit = await connection.run_sync(is_in_autocommit)
        try:
            if was_in_autocommit:
                await connection.run_sync(_set_autocommit, autocommit=False)
            async with connection.begin():
                yield connection
        except (DBAPIError, ReadOnlyServerError) as error:
            await connection.run_sync(_standby.leave_if_read_only, error)
            raise
        finally:
            if was_in_autocommit:
                await connection.run_sync(_give_back, autocommit=True)


@asynccontextmanager
async def atomic(database: Database, conn: AsyncConnection | None) -> AsyncGenerator[AsyncConnection]:
    """Yield a connection on which several statements take effect together or not at all.

    Without `conn`, that is a transaction. On the caller's connection it is a savepoint: after an error, the caller's
    transaction is as it was before, and can go on. Nothing is repeated, because the items can be read only once.

    Raises:
        InvalidInputError: The caller's connection is in autocommit, where each statement takes effect by itself. Or
            another task has a savepoint of this library open on it.
        DeadlockError, TransactionConflictError: PostgreSQL refused to commit because of a concurrent transaction.
    """
    check_connection(conn)
    if conn is None:
        async with transaction(database.engine) as connection:
            yield connection
            with translated_errors():
                await connection.commit()
    else:
        await conn.run_sync(check_in_transaction, "where several statements cannot be atomic")
        with savepoint_open(cast("Connection", conn.sync_connection)):
            async with conn.begin_nested():
                yield conn


# For each connection on which this library has a savepoint open: the task that opened it. The reference to the task is
# weak. A task's frames refer to the connection, so a strong reference would keep the connection in here for ever.
_savepoints: WeakKeyDictionary[Connection, ReferenceType[asyncio.Task[Any]]] = WeakKeyDictionary()


@contextmanager
def savepoint_open(connection: Connection) -> Generator[None]:
    """Reserve a connection for the current task while the library has a savepoint open on it.

    Otherwise another task could write inside the savepoint. ROLLBACK TO SAVEPOINT would then undo its write after its
    call has returned. The same task may use the connection: the items of a bulk call may be read from it.

    Raises:
        InvalidInputError: Another task has a savepoint open on the connection.
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
    """Reject a connection on which the library has a savepoint open for another task.

    Raises:
        InvalidInputError: It has one.
    """
    opened_by = _savepoints.get(connection)
    task = None if opened_by is None else opened_by()
    if task is not None and task is not asyncio.current_task():
        raise InvalidInputError("conn", "is in use by another call")


class _TranslatedErrors:
    # A class, because a generator would make a reference cycle since Python 3.12: its frame refers to contextlib's
    # frame, that one to the error, the error to its traceback, and the traceback to the generator's frame.

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if isinstance(error, DBAPIError) and get_sqlstate(error) not in NOT_IN_ENCODING:
                _raise_translated(error, None, None)
            if isinstance(error, DBAPIError | UnicodeEncodeError):
                reason = "have a character that the encoding of the client or of the database lacks"
                raise InvalidInputError(self._what, reason) from None
        finally:
            del error


def translated_errors(what: str = "items") -> AbstractContextManager[None]:
    """Translate the errors of a statement for many items into errors of this package.

    Args:
        what: The name of the items in an error.

    Raises:
        DeadlockError, TransactionConflictError: PostgreSQL aborted the transaction because of a concurrent one.
        ProcessLockedError: A `lock_timeout` ended the wait for a lock.
        InvalidInputError: One of the items cannot be stored.
    """
    return _TranslatedErrors(what)


def psycopg_connection(connection: Connection) -> psycopg.AsyncConnection[Any]:
    """Return psycopg's connection."""
    return cast("psycopg.AsyncConnection[Any]", connection.connection.driver_connection)


def is_in_autocommit(connection: Connection) -> bool:
    """Whether each statement takes effect by itself."""
    return psycopg_connection(connection).autocommit


def check_can_lock(connection: Connection) -> None:
    """Reject a connection on which a lock would end with its statement.

    Raises:
        InvalidInputError: It is in autocommit.
    """
    if is_in_autocommit(connection):
        raise InvalidInputError("conn", "is in autocommit, where locks end with their statement")


def check_in_transaction(connection: Connection, why: str) -> None:
    """Reject a connection on which several statements cannot belong together.

    Args:
        connection: The connection.
        why: What it means that the connection is in autocommit, for the message.

    Raises:
        InvalidInputError: It is in autocommit, its transaction is aborted, or it is in use by another task.
    """
    if is_in_autocommit(connection):
        raise InvalidInputError("conn", f"is in autocommit, {why}")
    _check_not_aborted(connection)
    check_not_in_use(connection)


def _run_on(connection: Connection, work: Callable[[Connection], ResultT]) -> ResultT:
    """Run `work` on a connection, if its transaction is not aborted."""
    _check_not_aborted(connection)
    with encodable_texts(connection, psycopg_connection(connection)):
        return work(connection)


def _check_not_aborted(connection: Connection) -> None:
    if psycopg_connection(connection).pgconn.transaction_status == TransactionStatus.INERROR:
        # The server would reject each statement, and SQLAlchemy's error would quote the state.
        raise InvalidInputError("conn", "is in a transaction that an earlier error aborted; roll that back first")


def _borrow_and_run(engine: Engine, work: Callable[[Connection], ResultT]) -> ResultT:
    """Run `work` on a borrowed connection, in autocommit if possible.

    A single statement is atomic by itself. In autocommit it needs one round trip. With BEGIN and COMMIT it needs three.
    SQLAlchemy still fires the events of a transaction, but its BEGIN and COMMIT send nothing. The connection goes back
    to the pool as it was borrowed. If that fails, it is closed.
    """
    with engine.connect() as connection, _standby.LeftIfReadOnly(connection), connection.begin():
        if not _can_autocommit(connection):
            return _run_on(connection, work)
        try:
            _set_autocommit(connection, autocommit=True)
            return _run_on(connection, work)
        finally:
            _give_back(connection, autocommit=False)


def _set_autocommit(connection: Connection, *, autocommit: bool) -> None:
    # Not isolation_level="AUTOCOMMIT": SQLAlchemy refuses it once a transaction has begun. If set earlier, `begin`
    # listeners run in autocommit (SET LOCAL has no effect). Its reset sets the dialect's default, not `connect_args`.
    adapted: Any = connection.connection.dbapi_connection
    adapted.autocommit = autocommit


def _give_back(connection: Connection, *, autocommit: bool) -> None:
    """Reset a borrowed connection to what it was before. If that fails, close it, so that nobody else gets it."""
    if connection.invalidated or connection.closed:
        return
    try:
        _set_autocommit(connection, autocommit=autocommit)
    except psycopg.Error as error:
        _log.invalidated(type(error).__name__)
        connection.invalidate()
    except BaseException as error:
        # If the event loop was busy for long, psycopg lets other tasks run here. A cancellation can arrive then.
        _log.invalidated(type(error).__name__)
        connection.invalidate()
        raise


def _can_autocommit(connection: Connection) -> bool:
    """Whether autocommit has the same effect as a transaction of this one statement.

    It has not, so the library keeps the real transaction,

    - if the engine uses SERIALIZABLE, read-only or deferrable transactions (SERIALIZABLE protects only from other
      SERIALIZABLE transactions, and a read-only transaction must reject the write);
    - if an event listener runs SQL when a transaction begins, for example SET LOCAL;
    - if an event listener for `commit` exists: it may raise, which rolls back what was written.
    """
    driver = psycopg_connection(connection)
    return (
        not driver.autocommit
        and driver.isolation_level is not psycopg.IsolationLevel.SERIALIZABLE
        and not driver.read_only
        and not driver.deferrable
        and driver.pgconn.transaction_status == TransactionStatus.IDLE
        and not connection.dispatch.commit
    )


def get_sqlstate(error: DBAPIError) -> str | None:
    """Return the server's error code; `None` if the error does not come from the server."""
    return getattr(error.orig, "sqlstate", None)


def translate_conflict(
    error: DBAPIError, key: tuple[str, UUID] | None, expected_version: int | None
) -> ProcessRepositoryError | None:
    """Return the error of this package for a conflict that PostgreSQL found; `None` if it is something else."""
    sqlstate = get_sqlstate(error)
    if sqlstate == _standby.READ_ONLY:
        return ReadOnlyServerError()
    if _standby.is_recovery_conflict(error):
        return RecoveryConflictError(sqlstate or SERIALIZATION_FAILURE)
    if sqlstate == DEADLOCK_DETECTED:
        return DeadlockError()
    if sqlstate == SERIALIZATION_FAILURE:
        return TransactionConflictError(sqlstate) if key is None else ConcurrentUpdateError(*key, expected_version)
    if sqlstate == LOCK_NOT_AVAILABLE:
        return ProcessLockedError() if key is None else ProcessLockedError(*key)
    return None


def _what_is_missing(error: DBAPIError) -> str | None:
    """Return the server's message, if a statement of this library names a table or a column that is not there.

    It quotes the name, and no value. A trigger of somebody else can name one, too: then the message has a context.
    """
    diagnostic = getattr(error.orig, "diag", None)
    if get_sqlstate(error) not in _UNDEFINED or diagnostic is None or diagnostic.context is not None:
        return None
    return str(diagnostic.message_primary)


def _raise_translated(error: DBAPIError, key: tuple[str, UUID] | None, expected_version: int | None) -> NoReturn:
    """Raise the error of this package for an error of the server. If there is none, raise the error itself.

    SQLAlchemy's error, its traceback and a frame in it refer to each other. They would keep the caller's objects alive
    until the garbage collector runs. So the frames are cleared, and the variables here are deleted.
    """
    clear_frames(error.__traceback__)
    conflict = translate_conflict(error, key, expected_version)
    try:
        if get_sqlstate(error) == PROGRAM_LIMIT_EXCEEDED:
            raise limit_error(error) from None  # SQLAlchemy's error quotes the parameters
        missing = _what_is_missing(error)
        if missing is not None:
            # Not from SQLAlchemy's error, which quotes the parameters.
            raise SchemaTooOldError(None, REVISION, missing=missing) from error.orig
        if conflict is None:
            raise error
        raise conflict from error
    finally:
        del conflict, error
