from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import ProcessRetention
from tests.support.databases import Server, as_role, async_url


@pytest.fixture(params=["READ COMMITTED", "SERIALIZABLE", "AUTOCOMMIT"])
def purger_level(request: pytest.FixtureRequest) -> str:
    """How isolated the transactions of the purger's engine are, before the library sets it."""
    level: str = request.param
    return level


@pytest.fixture
async def purger(database_url: str, server: Server, purger_level: str) -> AsyncIterator[AsyncEngine]:
    """The purger's engine. Its role has only the rights that the retention needs."""
    engine = create_async_engine(async_url(as_role(database_url, server.purger)), isolation_level=purger_level)
    yield engine
    await engine.dispose()


@pytest.fixture
def retention(purger: AsyncEngine) -> ProcessRetention:
    return ProcessRetention(purger)
