from collections.abc import Iterator

import pytest

from tests.faults.servers import KillableServer, killable_server


@pytest.fixture(scope="session")
def own_server() -> Iterator[KillableServer]:
    with killable_server() as server:
        yield server


@pytest.fixture
def killable(own_server: KillableServer) -> KillableServer:
    """A server to be killed and restarted. It runs, and others have written to it: look at your own rows only."""
    if not own_server.is_started:  # by a test that failed half-way
        own_server.start()
    return own_server
