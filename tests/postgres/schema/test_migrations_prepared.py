"""Keys and CHECKs that were built before, on large tables, are used and not built again."""

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError

from commandbus_process.migrations import alembic_config
from tests.support import ROOT
from tests.support.databases import Server, execute, execute_script, fresh_database
from tests.support.schema import COMMAND, adopted, described, revision_of, rows, succeeds

PAGE = (ROOT / "docs/schema.md").read_text()
PREPARE = PAGE.split("### Large tables")[1].split("```sql\n")[1].split("```")[0]
BUILT = """
    SELECT replace(relname, '_new_', '_'), pg_relation_filenode(oid) FROM pg_class
    WHERE relname ~ '^(process_audit.*(pkey|command_key)|idx_process_status_created)$'
"""


def prepare(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in PREPARE.strip().removesuffix(";").split(";\n"):
            connection.execute(statement.encode())


def built(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute(BUILT.encode()).fetchall())


@pytest.mark.parametrize("way", ["online", "offline"])
def test_what_was_built_before_is_used(empty_database_url: str, newest_server: Server, way: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0001")
    execute(url, "ALTER TABLE commandbus.process_audit RENAME CONSTRAINT process_audit_pkey TO hand_written")
    kept = rows(url)
    prepare(url)
    before = built(url)
    assert len(before) == 3
    if way == "online":
        command.upgrade(alembic_config(url), "head")
    else:
        execute_script(url, succeeds("upgrade", "commandbus_0001:head", "--sql", url=None))
    assert (revision_of(url), rows(url), built(url)) == ("commandbus_0005", kept, before)
    command.check(alembic_config(url))
    with fresh_database(newest_server.url) as other:
        adopted(other, "head")
        assert described(url) == described(other)


def test_an_index_of_that_name_that_is_another_is_not_used(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0001")
    execute(
        url,
        "CREATE UNIQUE INDEX process_audit_new_command_key ON commandbus.process_audit (domain, process_id, id); "
        f"UPDATE commandbus.process_audit SET command_id = '{COMMAND}'",
    )
    with pytest.raises(CommandError, match="logged more than once"):
        command.upgrade(alembic_config(url), "head")
    assert revision_of(url) == "commandbus_0001"


def test_a_check_that_is_not_validated_is_not_trusted(empty_database_url: str) -> None:
    url = empty_database_url
    adopted(url, "commandbus_0002")
    execute(
        url,
        "UPDATE commandbus.process_audit SET received_at = NULL; "
        "ALTER TABLE commandbus.process_audit ADD CONSTRAINT process_audit_reply_check "
        "CHECK ((reply_outcome IS NULL) = (received_at IS NULL)) NOT VALID",
    )
    with pytest.raises(CommandError, match="without a time"):
        command.upgrade(alembic_config(url), "head")
    assert revision_of(url) == "commandbus_0002"
