"""Run a transaction of several statements, and run it again after a lost race."""

from collections.abc import Awaitable, Callable
from traceback import clear_frames
from typing import TypeVar, cast

from psycopg.pq import TransactionStatus
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import _log
from commandbus_process._arguments import LIMIT, checked
from commandbus_process.errors import InvalidInputError, ProcessRepositoryError
from commandbus_process.postgres._database import check_engine
from commandbus_process.postgres._standby import READ_ONLY
from commandbus_process.postgres._transaction import (
    RUN_AGAIN,
    get_sqlstate,
    pause,
    psycopg_connection,
    transaction,
    translate_conflict,
)

ResultT = TypeVar("ResultT")

# In seconds. Longer than the pauses for a single statement, because another whole transaction has to finish.
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


async def run_in_transaction(
    engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[ResultT]], *, attempts: int = 5
) -> ResultT:
    """Run `work` in a transaction, commit it, and return what `work` returned. After a lost race, run it again.

    You need this loop as soon as your transaction has more than one statement:

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
    - a serialization failure or a deadlock (SQLSTATE 40001, 40P01) in one of your own statements, or in the COMMIT;
    - a write on a server that only reads (SQLSTATE 25006). Its connection is closed, and the next one may lead to the
      new primary;
    - an `ExceptionGroup` that has only such errors.

    Before each new attempt there is a random pause, which grows with each attempt. After any other error, and after a
    cancellation, the transaction is rolled back and the error is raised.

    `work` may run several times. Read the processes inside `work`, and send messages or call other services only after
    this function has returned. `work` must not commit or roll back.

    Args:
        engine: The engine from which a connection is borrowed. With an engine in autocommit you get a real transaction,
            too. The connection is in autocommit again afterwards.
        work: Called with the connection, on which a transaction has begun.
        attempts: The maximum number of attempts.

    Raises:
        ProcessRepositoryError: The last attempt lost, too. This is the error of that attempt. If it was an error of
            SQLAlchemy, it is a `TransactionConflictError`, `DeadlockError` or `ReadOnlyServerError` that is chained to
            it.
        InvalidInputError: `attempts` is less than 1. Or `work` returned, but its transaction cannot be committed: it
            ended the transaction itself, or caught the error that aborted it. Then nothing is committed, except what
            `work` itself committed.
        TypeError: This package cannot use the engine, or `work` is not a function.
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
                # The frames of this attempt and the error refer to each other: a cycle, unless they are cleared.
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
    """Return the error of this package for a lost race; `None` if running the transaction again cannot help."""
    if isinstance(error, ProcessRepositoryError):
        return error if error.retryable else None
    if isinstance(error, DBAPIError):
        return translate_conflict(error, None, None) if get_sqlstate(error) in {*RUN_AGAIN, READ_ONLY} else None
    if isinstance(error, ExceptionGroup):
        conflicts = [_conflict_in(each) for each in cast("ExceptionGroup[Exception]", error).exceptions]
        return None if None in conflicts else conflicts[0]
    return None


def _check_can_be_committed(conn: AsyncConnection) -> None:
    """Check the transaction before COMMIT. In an aborted transaction, COMMIT rolls back and reports no error."""
    if conn.sync_connection is None or not conn.in_transaction():
        raise InvalidInputError("work", "ended the transaction itself; let run_in_transaction() do that")
    if (
        not conn.invalidated
        and psycopg_connection(conn.sync_connection).pgconn.transaction_status == TransactionStatus.INERROR
    ):
        raise InvalidInputError("work", "caught an error that aborted the transaction; let that error pass")
