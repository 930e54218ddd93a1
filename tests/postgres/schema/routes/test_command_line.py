"""`python -m commandbus_process.migrations`, as a person or a script calls it."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import execute
from tests.support.schema import described, revision_of, rows, seed

UGLY = 'Ugly "schema".50%s'


def run(*arguments: str, url: str | None, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if url is not None:
        environment["DATABASE_URL"] = url
    return subprocess.run(
        [sys.executable, "-m", "commandbus_process.migrations", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_life(empty_database_url: str, tmp_path: Path) -> None:
    def says(*arguments: str, status: int = 0) -> str:
        result = run(*arguments, url=empty_database_url, folder=tmp_path)
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        return (result.stdout + result.stderr).strip()

    assert says("current") == "base"
    assert "has no tables of commandbus_process" in says("check", status=1)
    assert says("upgrade", "3") == "base -> commandbus_0003"
    assert "is at revision commandbus_0003, and revision commandbus_0005 is needed" in says("check", status=1)
    assert says("upgrade") == "commandbus_0003 -> commandbus_0005"
    assert says("upgrade") == "nothing to do: commandbus_0005"
    assert says("current") == "commandbus_0005 (newest)"
    assert says("check") == "commandbus_0005"
    execute(empty_database_url, "ALTER TABLE commandbus.process ALTER COLUMN state DROP NOT NULL")
    execute(empty_database_url, "DROP INDEX commandbus.idx_process_deadline")
    told = says("check", status=1)
    assert "differs: modify nullable commandbus process state" in told
    assert "differs: add index idx_process_deadline" in told
    assert says("downgrade", "commandbus_0004") == "commandbus_0005 -> commandbus_0004"
    assert says("downgrade", "base") == "commandbus_0004 -> base"
    assert not any(described(empty_database_url).values())


def test_another_schema(empty_database_url: str, tmp_path: Path) -> None:
    for arguments, told in (
        (["upgrade"], "base -> commandbus_0005"),
        (["current"], "commandbus_0005 (newest)"),
        (["check"], "commandbus_0005"),
    ):
        result = run(*arguments, "--schema", UGLY, url=empty_database_url, folder=tmp_path)
        assert (result.returncode, result.stdout.strip()) == (0, told), result.stderr
    assert not any(described(empty_database_url).values())


def test_stamp_looks_at_nothing_and_says_so(empty_database_url: str, tmp_path: Path) -> None:
    seed(empty_database_url)
    kept = rows(empty_database_url)
    result = run("stamp", "1", url=empty_database_url, folder=tmp_path)
    assert result.stdout.strip() == "stamped: commandbus_0001. The tables were not looked at"
    assert run("upgrade", url=empty_database_url, folder=tmp_path).returncode == 0
    assert (rows(empty_database_url), revision_of(empty_database_url)) == (kept, "commandbus_0005")


@pytest.mark.parametrize(
    ("arguments", "url", "status", "told"),
    [
        (["upgrade"], None, 1, "set DATABASE_URL=postgresql://"),
        (["upgrade"], "mysql://user:hunter2@host/x", 1, "must begin with postgresql://"),
        (["upgrade"], "postgresql://user:hunter2@127.0.0.1:1/x", 1, "127.0.0.1"),
        (["upgrade", "99"], "", 1, "set DATABASE_URL"),
        (["sql", "99"], None, 1, "commandbus_0099"),
        (["current", "--schema", "pg_catalog"], "postgresql:///x", 1, "is the server's own"),
        ([], None, 2, "COMMAND"),
        (["upgrad"], None, 2, "invalid choice"),
        (["downgrade"], None, 2, "REVISION"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    arguments: list[str], url: str | None, status: int, told: str, tmp_path: Path
) -> None:
    result = run(*arguments, url=url, folder=tmp_path)
    assert result.returncode == status
    assert told in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "hunter2" not in result.stderr


def test_a_revision_that_refuses_says_why(empty_database_url: str, tmp_path: Path) -> None:
    seed(empty_database_url)
    result = run("upgrade", url=empty_database_url, folder=tmp_path)
    assert result.returncode == 1
    assert "the tables of revision 0001 exist already" in result.stderr
    assert "migrations adopt" in result.stderr
    assert "Traceback" not in result.stderr
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM commandbus.process").fetchone() == (2,)
