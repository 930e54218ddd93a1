"""The process repository on PostgreSQL."""

from commandbus_process.postgres._repository import PostgresProcessRepository
from commandbus_process.postgres._retrying import run_in_transaction

__all__ = ["PostgresProcessRepository", "run_in_transaction"]
