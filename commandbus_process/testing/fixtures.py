"""A pytest plugin: a repository on PostgreSQL whose writes are rolled back after each test.

Nothing registers it by itself. In your topmost `conftest.py`:

    pytest_plugins = ["commandbus_process.testing.fixtures"]

    @pytest.fixture
    def commandbus_url() -> str:
        return "postgresql://..."  # a migrated database

It needs a plugin for asyncio, such as pytest-asyncio.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool
from typing_extensions import override

from commandbus_process.models import JsonObject, StateT
from commandbus_process.postgres import PostgresProcessRepository
from commandbus_process.repository import ProcessRepository
from commandbus_process.testing._passing import PassingRepository

if TYPE_CHECKING:
    async_fixture = pytest.fixture
else:
    try:  # in its mode `strict`, only its own fixtures are asynchronous
        from pytest_asyncio import fixture as async_fixture
    except ImportError:
        async_fixture = pytest.fixture

__all__ = [
    "BoundRepository",
    "commandbus_connection",
    "commandbus_repository",
    "commandbus_state_type",
    "commandbus_url",
]


class BoundRepository(PassingRepository[StateT]):
    """A repository that runs each call on one connection, unless you pass another one.

    `claim` and `for_update` need a connection, as always: pass yours.

    Args:
        inner: The repository.
        connection: The connection, in a transaction.
    """

    def __init__(self, inner: ProcessRepository[StateT], connection: AsyncConnection) -> None:
        super().__init__(inner)
        self._connection = connection

    @override
    def _conn(self, conn: AsyncConnection | None) -> AsyncConnection | None:
        return self._connection if conn is None else conn


@pytest.fixture
def commandbus_url() -> str:
    """The URL of a migrated database for tests. Replace this fixture by your own."""
    pytest.fail("define a fixture `commandbus_url` that returns the URL of a migrated database for tests")


@pytest.fixture
def commandbus_state_type() -> object:
    """The `state_type` of `commandbus_repository`. Default: states are JSON objects."""
    return None


@async_fixture
async def commandbus_connection(commandbus_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that is rolled back after the test. Do not commit it."""
    engine = create_async_engine(make_url(commandbus_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            transaction = await connection.begin()
            yield connection
            if not transaction.is_active:
                pytest.fail("the test has ended the transaction of commandbus_connection, so its rows may have stayed")
            await transaction.rollback()
    finally:
        await engine.dispose()


@pytest.fixture
def commandbus_repository(
    commandbus_connection: AsyncConnection, commandbus_state_type: object
) -> ProcessRepository[JsonObject]:
    """A repository whose calls all run on `commandbus_connection`, so that nothing stays after the test."""
    inner: PostgresProcessRepository[JsonObject] = PostgresProcessRepository(
        commandbus_connection.engine, state_type=commandbus_state_type
    )
    return BoundRepository(inner, commandbus_connection)
