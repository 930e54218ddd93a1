"""The repository in memory keeps the contract, and says what it cannot do."""

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process import JsonObject
from commandbus_process.testing import NO_CONNECTION, InMemoryProcessRepository
from commandbus_process.testing.contract import ClaimingContract, ProcessRepositoryContract


class TestContract(ProcessRepositoryContract):
    @pytest.fixture
    def repository(self) -> InMemoryProcessRepository[JsonObject]:
        return InMemoryProcessRepository()


class TestContractWithAConnection(ProcessRepositoryContract, ClaimingContract):
    @pytest.fixture
    def repository(self) -> InMemoryProcessRepository[JsonObject]:
        return InMemoryProcessRepository(ignore_conn=True)

    @pytest.fixture
    def conn(self) -> AsyncConnection:
        return NO_CONNECTION
