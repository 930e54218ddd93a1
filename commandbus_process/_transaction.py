"""Whose transaction a method runs in, and what becomes of it when PostgreSQL finds a conflict."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TypeVar
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process.errors import (
    ConcurrentUpdateError,
    DeadlockError,
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
    work: Callable[[AsyncConnection], Awaitable[ResultT]],
    key: tuple[str, UUID] | None = None,
    expected_version: int | None = None,
) -> ResultT:
    """Run `work` in the caller's transaction, left as it is, or in one of its own.

    The only place that decides where a connection comes from, and the only one that looks at the server's errors. A
    transaction of its own that PostgreSQL aborts for another one's sake is run again, so that the answer is the same
    under every isolation level; the caller's cannot be, since its first half is the caller's.

    Args:
        engine: Where a connection is borrowed from if there is no `conn`.
        conn: The caller's connection, which is never begun, committed, rolled back or closed here.
        work: What to do; it may be called more than once.
        key: The process that it is about, if it is about one.
        expected_version: The version that the process is expected to have.

    Raises:
        ConcurrentUpdateError: The process was changed by another transaction, and PostgreSQL aborted this one.
        DeadlockError: This transaction waited for one that waited for it, and PostgreSQL aborted this one.
        ProcessLockedError: A `lock_timeout` ended the wait for the process.
        TransactionConflictError: As ConcurrentUpdateError, where `work` is not about a single process.
    """
    if conn is not None and not isinstance(conn, AsyncConnection):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(
            f"conn must be an AsyncConnection, not {type(conn).__name__}; an AsyncSession has one: "
            "await session.connection()"
        )
    remaining = ATTEMPTS if conn is None else 1
    while True:
        remaining -= 1
        try:
            async with engine.begin() if conn is None else nullcontext(conn) as connection:
                return await work(connection)
        except DBAPIError as error:
            sqlstate = getattr(error.orig, "sqlstate", None)
            if remaining and sqlstate in {SERIALIZATION_FAILURE, DEADLOCK_DETECTED}:
                continue
            conflict = _conflict(sqlstate, key, expected_version)
            if conflict is None:
                raise
            raise conflict from error


def _conflict(
    sqlstate: str | None, key: tuple[str, UUID] | None, expected_version: int | None
) -> ProcessRepositoryError | None:
    if sqlstate == DEADLOCK_DETECTED:
        return DeadlockError()
    if sqlstate == SERIALIZATION_FAILURE:
        return TransactionConflictError(sqlstate) if key is None else ConcurrentUpdateError(*key, expected_version)
    if sqlstate == LOCK_NOT_AVAILABLE and key is not None:
        return ProcessLockedError(*key)
    return None
