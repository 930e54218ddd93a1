"""The logger `commandbus_process`, and all of its messages.

The facts are in `extra`. No message and no `extra` contains a state, a payload or a URL.
"""

import logging
from uuid import UUID

logger = logging.getLogger("commandbus_process")

# `extra` must not use a name of LogRecord's own attributes, such as `process`: logging would raise KeyError.


def retried(
    attempt: int,
    sqlstate: str | None,
    key: tuple[str, UUID] | None,
    *,
    in_recovery: bool = False,
) -> None:
    """Report that a method without `conn` lost a race and runs again. This is normal under load, so it is DEBUG.

    Args:
        attempt: The number of the attempt that lost, from 1.
        sqlstate: The server's code.
        key: The process, if the method is about one.
        in_recovery: Whether it lost to the recovery of a standby, and not to another transaction.
    """
    domain, process_id = key or (None, None)
    logger.debug(
        "attempt %d %s (%s); it is run again",
        attempt,
        "was in the way of a standby's recovery" if in_recovery else "lost a race with another transaction",
        sqlstate,
        extra={"attempt": attempt, "sqlstate": sqlstate, "domain": domain, "process_id": process_id},
    )


def rerun(attempt: int, error: Exception) -> None:
    """Report that `run_in_transaction` runs a transaction again, because of an error of this package."""
    facts = {name: getattr(error, name, None) for name in ("sqlstate", "domain", "process_id")}
    extra = {"attempt": attempt, "error": type(error).__name__, **facts}
    logger.info("attempt %d of a transaction ended in %s; it is run again", attempt, type(error).__name__, extra=extra)


def redelivered(operation: str, domain: str, process_id: UUID, command_id: UUID | None = None) -> None:
    """Report that a call was a redelivery: everything was written already.

    Args:
        operation: The name of the method.
        domain: The process's domain.
        process_id: The process's id.
        command_id: The step, if the call is about one step.
    """
    extra = {"operation": operation, "domain": domain, "process_id": process_id, "command_id": command_id}
    logger.info("%s recognised a redelivery and wrote nothing", operation, extra=extra)


def invalidated(reason: str) -> None:
    """Report that a connection was closed instead of given back to the pool."""
    logger.info("a connection was closed and not given back to the pool: %s", reason, extra={"reason": reason})
