"""A test kit for applications: a repository in memory, and faults to run your handlers with.

Importing it imports no test framework. `commandbus_process.testing.contract` and `commandbus_process.testing.fixtures`
need pytest.
"""

from commandbus_process.testing._store import InMemoryStore
from commandbus_process.testing.memory import NO_CONNECTION, InMemoryProcessRepository

__all__ = ["NO_CONNECTION", "InMemoryProcessRepository", "InMemoryStore"]
