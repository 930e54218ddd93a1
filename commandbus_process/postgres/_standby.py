"""Servers that only read: standbys. What their errors mean, and what happens to connections to them."""

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from commandbus_process.errors import ReadOnlyServerError

if TYPE_CHECKING:
    import psycopg

READ_ONLY = "25006"

# A standby cancels a read that is in the way of what it has received from its primary. The SQLSTATEs are those of a
# lost race and of a deadlock. The message differs, but it may be translated. The server also sends the name of its
# source file that raised the error. Only conflicts with recovery have these SQLSTATEs and come from these files
# (provoked with PostgreSQL 16 and 18). Lost races come from the executor and from predicate.c, deadlocks from
# deadlock.c.
_CONFLICTS = frozenset({"40001", "40P01"})
_CANCELLED_IN = frozenset({"postgres.c", "standby.c"})

# The server reports these settings when a session begins, and when they change. Reading them sends nothing.
_SERVER_READS_ONLY = (b"in_hot_standby", b"default_transaction_read_only")

ATTEMPTS = 5
"""How often a read without `conn` is tried on a standby that cancels it.

By then, a long read has taken five times `max_standby_streaming_delay` or more. A short one rarely conflicts twice.
"""


def is_recovery_conflict(error: DBAPIError) -> bool:
    """Whether a standby cancelled the statement, or ended its session, to go on with what its primary sent."""
    if getattr(error.orig, "sqlstate", None) not in _CONFLICTS:
        return False
    return getattr(getattr(error.orig, "diag", None), "source_file", None) in _CANCELLED_IN


def is_read_only(error: BaseException) -> bool:
    """Whether the server refused a write or a lock, because it or the transaction is read-only."""
    if isinstance(error, DBAPIError):
        return getattr(error.orig, "sqlstate", None) == READ_ONLY
    return isinstance(error, ReadOnlyServerError)


class LeftIfReadOnly:
    """Leave a borrowed connection at the end of a block, if `leave_if_read_only` says so. See `_TranslatedErrors`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is not None:
                leave_if_read_only(self._connection, error)
        finally:
            del error


def leave_if_read_only(connection: Connection, error: BaseException) -> None:
    """Close a borrowed connection if the server at its other end refused a write because it only reads.

    After a failover, a connection may lead to the server that takes no writes. It works, so `pool_pre_ping` would keep
    it for ever. The next connection may lead to the new primary.

    Nothing is closed if only the transaction is read-only: the next connection would be no better.
    """
    if not is_read_only(error) or connection.invalidated or connection.closed:
        return
    driver = cast("psycopg.AsyncConnection[Any]", connection.connection.driver_connection)
    if any(driver.pgconn.parameter_status(name) == b"on" for name in _SERVER_READS_ONLY):
        connection.invalidate()
