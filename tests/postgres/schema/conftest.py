from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.databases import Server, as_role


@pytest.fixture(scope="module")
def application(shared_url: str, newest_server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A session of the application's role."""
    with psycopg.connect(as_role(shared_url, newest_server.application)) as connection:
        yield connection


@pytest.fixture(scope="module")
def owner(shared_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of the administrator."""
    with psycopg.connect(shared_url) as connection:
        yield connection
