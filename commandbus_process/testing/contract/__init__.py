"""What any process repository promises, as tests: subclass `ProcessRepositoryContract`.

It speaks the protocol only. Your subclass needs a fixture `repository`. The tests are coroutines, so your plugin for
asyncio must run them: pytest-asyncio does in its mode `auto`, or with `@pytest.mark.asyncio` on your class.
"""

import pytest

# So that a failing assertion shows its values. It works only before the modules are imported.
pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("_advancing", "_bulk", "_given", "_reading", "_saving", "_steps"))
)

from commandbus_process.testing.contract._advancing import AdvancingContract  # noqa: E402
from commandbus_process.testing.contract._bulk import BulkContract  # noqa: E402
from commandbus_process.testing.contract._reading import ClaimingContract, ReadingContract  # noqa: E402
from commandbus_process.testing.contract._saving import SavingContract  # noqa: E402
from commandbus_process.testing.contract._steps import StepsContract  # noqa: E402

__all__ = [
    "AdvancingContract",
    "BulkContract",
    "ClaimingContract",
    "ProcessRepositoryContract",
    "ReadingContract",
    "SavingContract",
    "StepsContract",
]


class ProcessRepositoryContract(SavingContract, ReadingContract, StepsContract, AdvancingContract, BulkContract):
    """All groups but `ClaimingContract`, which needs a connection.

    Fixtures:
        repository: Yours. A repository of JSON objects. It may hold other processes: the tests use ids of their own.
        conn: What each test passes as `conn`: `None`. Replace it by a connection to run the tests in a transaction.
    """
