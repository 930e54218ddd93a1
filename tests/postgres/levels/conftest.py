"""As for the contract: every test in this folder runs on each isolation level and each server."""

from tests.contract.conftest import database_url, isolation_level, server, shared_databases

__all__ = ["database_url", "isolation_level", "server", "shared_databases"]
