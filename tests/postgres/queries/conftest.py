import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import JsonObject, PostgresProcessQueries


@pytest.fixture
def queries(engine: AsyncEngine) -> PostgresProcessQueries[JsonObject]:
    return PostgresProcessQueries(engine)
