"""One database for all tests of a file: most of them use engines of their own."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    PostgresProcessRepository,
)
from tests.support.databases import Server, as_role, async_url
from tests.support.operations import Repository


@pytest.fixture
def application_url(shared_url: str, newest_server: Server) -> str:
    """One database for all tests of this module; each has a domain of its own."""
    return as_role(shared_url, newest_server.application)


@pytest.fixture
async def administrator(shared_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


@pytest.fixture
def plain(administrator: AsyncEngine) -> Repository:
    """A repository on another engine, for what a test needs around what it is about."""
    return PostgresProcessRepository(administrator)
