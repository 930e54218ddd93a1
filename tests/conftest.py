from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata
from tests.databases import async_url, fresh_database, migrated_template, running_server

DOMAIN = "orders"


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database with the newest schema, migrated once, cloned for each test."""
    with migrated_template(server_url) as name:
        yield name


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    with fresh_database(server_url, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database without any schema of ours."""
    with fresh_database(server_url) as url:
        yield url


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(database_url))
    yield engine
    await engine.dispose()


@pytest.fixture
def repository(engine: AsyncEngine) -> PostgresProcessRepository[JsonObject]:
    return PostgresProcessRepository(engine)


@pytest.fixture(params=["own transaction", "caller's connection"])
async def conn(request: pytest.FixtureRequest, engine: AsyncEngine) -> AsyncIterator[AsyncConnection | None]:
    """What a test passes as `conn`, so that it runs both ways."""
    if request.param == "own transaction":
        yield None
        return
    async with engine.begin() as connection:
        yield connection


@pytest.fixture
def process() -> ProcessMetadata:
    return new_process()


def new_process(process_id: UUID | None = None) -> ProcessMetadata:
    return ProcessMetadata(
        domain=DOMAIN,
        process_id=process_id or uuid4(),
        process_type="order",
        state={"total": 12.5, "items": ["book", None, True]},
    )
