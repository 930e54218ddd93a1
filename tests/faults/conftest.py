from collections.abc import Iterator

import pytest

from tests.faults.replicas import Replicas, replicas
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


@pytest.fixture(scope="session")
def own_replicas() -> Iterator[Replicas]:
    with replicas() as pair:
        pair.start()
        yield pair


@pytest.fixture
def pair(own_replicas: Replicas) -> Replicas:
    """A primary and its standby, which a test may kill and promote. Replication is asynchronous at first.

    Others have written to them: look at your own rows only.
    """
    if not own_replicas.is_whole:
        own_replicas.add_standby()
    if own_replicas.is_synchronous:
        own_replicas.set_synchronous(synchronous=False)
    return own_replicas
