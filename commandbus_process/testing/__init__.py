"""A test kit for applications: a repository in memory, and faults to run your handlers with.

Importing it imports no test framework. `commandbus_process.testing.contract` and `commandbus_process.testing.fixtures`
need pytest.
"""

from commandbus_process.testing._store import InMemoryStore
from commandbus_process.testing.faults import AcknowledgementLostError, ConnectionLostError, Fault, FaultyRepository
from commandbus_process.testing.memory import NO_CONNECTION, InMemoryProcessRepository
from commandbus_process.testing.redelivery import assert_redelivery_safe

__all__ = [
    "NO_CONNECTION",
    "AcknowledgementLostError",
    "ConnectionLostError",
    "Fault",
    "FaultyRepository",
    "InMemoryProcessRepository",
    "InMemoryStore",
    "assert_redelivery_safe",
]
