"""Each server and isolation level, and PgBouncer. The fixtures run a test on all of them.

A `conftest.py` imports them by name. `TEST_PLACE` names the only one to run on.
"""

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.support.databases import VERSIONS, Server, as_role, async_url
from tests.support.pgbouncer import UNPREPARED, PgBouncer


@dataclass(frozen=True)
class Place:
    """One way to reach a database.

    Attributes:
        isolation_level: The one of the engine's transactions.
        version: The server's.
        is_pooled: Whether PgBouncer, in transaction mode, stands before the server.
    """

    isolation_level: str
    version: object
    is_pooled: bool = False


# How isolated transactions are differs by their level, not by the version of the server. So each level is tested on the
# newest one, and the others with the usual level.
_DEFAULT = "READ COMMITTED"
_ALL = {
    **{f"PostgreSQL {version}, {_DEFAULT}": Place(_DEFAULT, version) for version in VERSIONS},
    **{
        f"PostgreSQL {VERSIONS[0]}, {level}": Place(level, VERSIONS[0]) for level in ("REPEATABLE READ", "SERIALIZABLE")
    },
    "PgBouncer": Place(_DEFAULT, VERSIONS[0], is_pooled=True),
}
_ONLY = os.environ.get("TEST_PLACE")
PLACES = {_ONLY: _ALL[_ONLY]} if _ONLY else _ALL


@pytest.fixture(params=PLACES.values(), ids=list(PLACES))
def place(request: pytest.FixtureRequest) -> Place:
    assert isinstance(request.param, Place)
    return request.param


@pytest.fixture
def server(place: Place, servers: Callable[[object], Server]) -> Server:
    return servers(place.version)


@pytest.fixture
def isolation_level(place: Place) -> str:
    return place.isolation_level


@pytest.fixture
def application_url(place: Place, request: pytest.FixtureRequest, server: Server, database_url: str) -> str:
    if not place.is_pooled:
        return as_role(database_url, server.application)
    pgbouncer = request.getfixturevalue("pgbouncer")
    assert isinstance(pgbouncer, PgBouncer)
    return pgbouncer.in_front_of(database_url)


@pytest.fixture
async def engine(place: Place, application_url: str) -> AsyncIterator[AsyncEngine]:
    connect_args = UNPREPARED if place.is_pooled else {}
    engine = create_async_engine(
        async_url(application_url), isolation_level=place.isolation_level, connect_args=connect_args
    )
    yield engine
    await engine.dispose()
