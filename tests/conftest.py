import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import JsonObject, PostgresProcessRepository, ProcessMetadata
from tests.support import citus
from tests.support.databases import VERSIONS, Server, as_role, async_url, fresh_database, prepared_server
from tests.support.items import new_process
from tests.support.pgbouncer import MISSING, NOT_PREPARING, PROGRAM, PgBouncer, login_role, running_pgbouncer
from tests.support.shared_database import SharedDatabase


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "database: the test needs a server (set for you)")
    config.addinivalue_line("markers", "own_database: the test changes more of its database than rows")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and not {"servers", "own_server", "own_replicas"}.isdisjoint(
            item.fixturenames
        ):
            item.add_marker("database")
        why = citus.why_it_cannot_hold(item.nodeid) if citus.DISTRIBUTED else None
        if why is not None:
            item.add_marker(pytest.mark.skip(f"Citus: {why}"))


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


@pytest.fixture(scope="session")
def shared_databases(servers: Callable[[object], Server]) -> Iterator[dict[Server, SharedDatabase]]:
    """The database that the tests on a server share, once one was needed."""
    del servers  # they are stopped after this
    databases: dict[Server, SharedDatabase] = {}
    yield databases
    for each in databases.values():
        each.drop()


@pytest.fixture
def database_url(
    request: pytest.FixtureRequest, server: Server, shared_databases: dict[Server, SharedDatabase]
) -> Iterator[str]:
    """A migrated, empty database, for its administrator. It is the test's own if that is marked `own_database`."""
    if request.node.get_closest_marker("own_database") is not None:
        with fresh_database(server.url, server.template) as url:
            yield url
        return
    if server not in shared_databases:
        shared_databases[server] = SharedDatabase(server)
    shared = shared_databases[server]
    shared.empty()
    yield shared.url
    if shared.is_changed():
        shared_databases.pop(server).drop()
        pytest.fail("the test has changed more than rows: mark it with @pytest.mark.own_database")


@pytest.fixture(scope="module")
def shared_url(newest_server: Server) -> Iterator[str]:
    """One migrated database for all tests of a module, which see each other's rows."""
    with fresh_database(newest_server.url, newest_server.template) as url:
        yield url


@pytest.fixture(scope="session")
def login(newest_server: Server) -> Iterator[str]:
    """A role with the application's rights and a password. Skips if PgBouncer is missing, and fails in CI.

    There, a skip would hide that nothing was proved.
    """
    if PROGRAM is None and os.environ.get("CI") == "true":
        pytest.fail(MISSING)
    if PROGRAM is None:
        pytest.skip(MISSING)
    with login_role(newest_server.url, newest_server.application) as name:
        yield name


@pytest.fixture(scope="session")
def pgbouncer(newest_server: Server, login: str) -> Iterator[PgBouncer]:
    with running_pgbouncer(newest_server.url, login, *NOT_PREPARING) as running:
        yield running


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
async def complaints() -> AsyncIterator[list[object]]:
    """What the event loop complained of: errors that nobody retrieved, tasks that nobody awaited."""
    loop = asyncio.get_running_loop()
    collected: list[object] = []
    previous = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: collected.append(context))
    gc.freeze()  # most complaints come from the garbage collector, which a test runs: so it has less to look through
    yield collected
    gc.unfreeze()
    loop.set_exception_handler(previous)


@pytest.fixture
def process() -> ProcessMetadata:
    return new_process()
