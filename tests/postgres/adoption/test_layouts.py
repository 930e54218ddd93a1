"""The layouts that `adopt` compares with are those that the revisions make.

After a new revision, write the file anew: `WRITE_LAYOUTS=1 python -m pytest tests/postgres/adoption/test_layouts.py`.
"""

import json
import os
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from commandbus_process.migrations import REVISIONS, alembic_config
from commandbus_process.migrations._connections import search_path_pinned
from commandbus_process.migrations.adoption._catalogue import read_catalogue
from commandbus_process.migrations.adoption._expected import FILE, as_file, described
from tests.support.databases import VERSIONS, Server, async_url, fresh_database


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest, servers: Any) -> Server:
    found: Server = servers(request.param)
    return found


def migrated(url: str) -> list[dict[str, Any]]:
    """What each revision makes of an empty database."""
    layouts: list[dict[str, Any]] = []
    engine = create_engine(async_url(url))
    for revision in REVISIONS:
        command.upgrade(alembic_config(url), revision)
        with engine.begin() as connection, search_path_pinned(connection):
            layouts.append(described(read_catalogue(connection, "commandbus")))
    engine.dispose()
    return layouts


def test_the_file_has_what_the_revisions_make(server: Server) -> None:
    with fresh_database(server.url) as url:
        made = migrated(url)
    if os.environ.get("WRITE_LAYOUTS"):
        FILE.write_text(as_file(made))
    assert json.loads(FILE.read_text()) == made


def test_every_revision_has_a_layout() -> None:
    found = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    assert [each.revision for each in found] == list(reversed(REVISIONS))
