"""The contract holds on each isolation level and each server, so every test in this folder runs on all of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.databases import VERSIONS, Server, execute, fresh_database


@pytest.fixture(params=VERSIONS, ids=lambda version: f"PostgreSQL {version}")
def server(request: pytest.FixtureRequest, servers: Callable[[object], Server]) -> Server:
    return servers(request.param)


@pytest.fixture(params=["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def isolation_level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def shared_databases(servers: Callable[[object], Server]) -> Iterator[Callable[[Server], str]]:
    """Gives one database for each server, cloned when it is first needed."""
    del servers  # they are stopped after this
    with ExitStack() as stack:
        made: dict[Server, str] = {}

        def shared_database(server: Server) -> str:
            if server not in made:
                made[server] = stack.enter_context(fresh_database(server.url, server.template))
            return made[server]

        yield shared_database


@pytest.fixture
def database_url(
    request: pytest.FixtureRequest, server: Server, shared_databases: Callable[[Server], str]
) -> Iterator[str]:
    """An empty database. A test with administrator's rights, which may change its schema, has it for itself."""
    if "administrator" in request.fixturenames:
        with fresh_database(server.url, server.template) as url:
            yield url
        return
    url = shared_databases(server)
    execute(url, "TRUNCATE commandbus.process_audit, commandbus.process")
    yield url
