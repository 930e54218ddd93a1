from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata
from tests.support.databases import VERSIONS, Server, as_role, async_url, fresh_database, prepared_server

DOMAIN = "orders"


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[object], Server]]:
    """Gives the server of a version; each is started once, when it is first needed, and stopped at the end."""
    with ExitStack() as stack:
        running: dict[object, Server] = {}

        def server(version: object) -> Server:
            if version not in running:
                running[version] = stack.enter_context(prepared_server(version))
            return running[version]

        yield server


@pytest.fixture(scope="session")
def newest_server(servers: Callable[[object], Server]) -> Server:
    return servers(VERSIONS[0])


@pytest.fixture
def server(newest_server: Server) -> Server:
    """The server that a test runs on; the contract tests run on each version."""
    return newest_server


@pytest.fixture
def isolation_level() -> str:
    """How isolated the engine's transactions are; the contract tests run on each level."""
    return "READ COMMITTED"


@pytest.fixture
def database_url(server: Server) -> Iterator[str]:
    """A migrated, empty database of the test's own, for its administrator."""
    with fresh_database(server.url, server.template) as url:
        yield url


@pytest.fixture(scope="module")
def shared_url(newest_server: Server) -> Iterator[str]:
    """One migrated database for all cases of a module, where a clone for each would take most of the time."""
    with fresh_database(newest_server.url, newest_server.template) as url:
        yield url


@pytest.fixture
def application_url(database_url: str, server: Server) -> str:
    """The same database, for an application that has only the rights that the repository needs."""
    return as_role(database_url, server.application)


@pytest.fixture
def empty_database_url(newest_server: Server) -> Iterator[str]:
    """A database without any schema of ours."""
    with fresh_database(newest_server.url) as url:
        yield url


@pytest.fixture
async def engine(application_url: str, isolation_level: str) -> AsyncIterator[AsyncEngine]:
    """The application's engine."""
    engine = create_async_engine(async_url(application_url), isolation_level=isolation_level)
    yield engine
    await engine.dispose()


@pytest.fixture
async def administrator(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine that may do everything, for what an application may not."""
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
