"""A transaction of several statements that is run again after a lost race."""

from collections.abc import Awaitable, Callable
from traceback import clear_frames
from typing import TypeVar, cast

from psycopg.pq import TransactionStatus
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import _log
from commandbus_process._arguments import LIMIT, checked
from commandbus_process.errors import InvalidInputError, ProcessRepositoryError
from commandbus_process.postgres._transaction import (
    RUN_AGAIN,
    check_engine,
    get_sqlstate,
    pause,
    psycopg_connection,
    transaction,
    translate_conflict,
)

ResultT = TypeVar("ResultT")

# In seconds. They are longer than those of a single statement: what is waited for is a whole transaction.
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


async def run_in_transaction(
    engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[ResultT]], *, attempts: int = 5
) -> ResultT:
    """Run `work` in a transaction, commit it, and return what `work` returned. After a lost race, run it again.

    This is the loop that every caller of the repository needs as soon as a transaction has more than one statement:

        async def pay(conn: AsyncConnection) -> None:
            process = await repository.get_by_id("orders", order_id, conn)
            if process is None:
                raise LookupError(order_id)
            process.state["paid"] = True
            await conn.execute(insert(payments).values(order_id=order_id))
            await repository.update(process, conn)

        await run_in_transaction(engine, pay)

    `work` is run again, from its start and in a new transaction, after

    - an error of this package that is `retryable`;
    - a serialization failure or a deadlock (SQLSTATE 40001, 40P01) of a statement of your own, or of the COMMIT;
    - an `ExceptionGroup` of such errors only.

    A random pause comes before each new attempt; it grows with each. Every other error, and a cancellation, rolls back
    and passes through.

    `work` must do everything anew each time: read the processes in it, and keep effects outside the database
    (messages, HTTP calls) until this function has returned. It must not commit or roll back.

    Args:
        engine: Where a connection is borrowed from. An engine in autocommit gives a real transaction too, and gets its
            connection back in autocommit.
        work: Is called with the connection, on which a transaction has begun.
        attempts: How often `work` is run at most.

    Raises:
        ProcessRepositoryError: The last attempt lost as well. It is the error of that attempt; for an error of
            SQLAlchemy's, a `TransactionConflictError` or `DeadlockError` that is chained to it.
        InvalidInputError: `attempts` is less than 1. Or `work` returned normally though its transaction cannot be
            committed: it ended the transaction itself, or caught the error that aborted it. Nothing is committed then,
            except what `work` committed.
        TypeError: The engine is none that this package works with, or `work` is not a function.
    """
    check_engine(engine)
    if not callable(work):
        raise TypeError(f"work must be a function that takes the connection, not {type(work).__name__}")
    checked(LIMIT, "attempts", attempts)
    attempt = 0
    while True:
        attempt += 1
        try:
            async with transaction(engine) as conn:
                result = await work(conn)
                _check_can_be_committed(conn)
        except (ProcessRepositoryError, DBAPIError, ExceptionGroup) as error:
            conflict = _conflict_in(error)
            try:
                if conflict is None or (conflict is error and attempt == attempts):
                    raise
                # The frames of this attempt refer to the error, and the error to them.
                clear_frames(error.__traceback__)
                if attempt == attempts:
                    raise conflict from error
                _log.rerun(attempt, conflict)
            finally:
                del conflict
        else:
            return result
        await pause(attempt, _FIRST_PAUSE, _LONGEST_PAUSE)


def _conflict_in(error: BaseException) -> ProcessRepositoryError | None:
    """Return the error of this package that says that the transaction can be run again, if it can be."""
    if isinstance(error, ProcessRepositoryError):
        return error if error.retryable else None
    if isinstance(error, DBAPIError):
        return translate_conflict(error, None, None) if get_sqlstate(error) in RUN_AGAIN else None
    if isinstance(error, ExceptionGroup):
        conflicts = [_conflict_in(each) for each in cast("ExceptionGroup[Exception]", error).exceptions]
        return None if None in conflicts else conflicts[0]
    return None


def _check_can_be_committed(conn: AsyncConnection) -> None:
    """Find out before the COMMIT: on an aborted transaction it does a ROLLBACK, without an error."""
    if conn.sync_connection is None or not conn.in_transaction():
        raise InvalidInputError("work", "ended the transaction, which is for run_in_transaction() to do")
    if (
        not conn.invalidated
        and psycopg_connection(conn.sync_connection).pgconn.transaction_status == TransactionStatus.INERROR
    ):
        raise InvalidInputError("work", "caught an error that aborted the transaction; let that error pass")
