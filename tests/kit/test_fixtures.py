"""The pytest plugin: what a test writes is rolled back. And what the kit imports, and what it does not."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support import ROOT

LOOP = ["-o", "asyncio_default_fixture_loop_scope=function"]
CONFTEST = """
import os

import pytest

pytest_plugins = ["commandbus_process.testing.fixtures"]


@pytest.fixture
def commandbus_url():
    return os.environ["DATABASE_URL"]
"""

WRITES = """
import os
from uuid import UUID

import psycopg
import pytest

from commandbus_process import JsonObject, ProcessMetadata, ProcessStatus
from commandbus_process.testing.contract import ClaimingContract, ReadingContract

MARK


@pytest.mark.parametrize("number", [1, 2])
async def test_each_test_begins_with_nothing(commandbus_repository, commandbus_connection, number):
    process = ProcessMetadata[JsonObject](domain="orders", process_id=UUID(int=1), process_type="order", state={})
    await commandbus_repository.save(process)
    await commandbus_repository.update(process, commandbus_connection)
    assert [process] == await commandbus_repository.find_by_status("orders", list(ProcessStatus))
    with psycopg.connect(os.environ["DATABASE_URL"]) as other:
        assert other.execute("SELECT count(*) FROM commandbus.process").fetchall() == [(0,)]


class TestContract(ReadingContract):
    @pytest.fixture
    def repository(self, commandbus_repository):
        return commandbus_repository


class TestContractWithAConnection(ClaimingContract):
    @pytest.fixture
    def repository(self, commandbus_repository):
        return commandbus_repository

    @pytest.fixture
    def conn(self, commandbus_connection):
        return commandbus_connection
"""

COMMITS = """
async def test_that_commits(commandbus_connection):
    await commandbus_connection.commit()
"""


def run_pytest(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *LOOP, *arguments, str(folder)],
        cwd=folder, env={**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mark", "mode"),
    [("", "auto"), ('pytestmark = pytest.mark.asyncio(loop_scope="function")', "strict")],
    ids=["auto", "strict"],
)
def test_what_a_test_writes_is_rolled_back(application_url: str, tmp_path: Path, mark: str, mode: str) -> None:
    """For a role with the rights of an application, in both modes of pytest-asyncio. The contract passes, too."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(WRITES.replace("MARK", mark))
    done = run_pytest(tmp_path, application_url, "-o", f"asyncio_mode={mode}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
    with psycopg.connect(application_url) as connection:
        assert connection.execute("SELECT count(*) FROM commandbus.process").fetchall() == [(0,)]


def test_a_test_that_commits_fails(application_url: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(COMMITS)
    done = run_pytest(tmp_path, application_url, "-o", "asyncio_mode=auto")
    assert done.returncode == 1
    assert "the test has ended the transaction of commandbus_connection" in done.stdout


def test_without_a_url_the_error_says_what_to_define(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["commandbus_process.testing.fixtures"]')
    (tmp_path / "test_it.py").write_text(COMMITS)
    done = run_pytest(tmp_path, "", "-o", "asyncio_mode=auto")
    assert done.returncode == 1
    assert "define a fixture `commandbus_url`" in done.stdout


def test_no_plugin_is_registered_by_itself(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(COMMITS)
    done = run_pytest(tmp_path, "", "-o", "asyncio_mode=auto")
    assert done.returncode == 1
    assert "fixture 'commandbus_connection' not found" in done.stdout


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("commandbus_process", ["pytest", "hypothesis", "commandbus_process.testing"]),
        ("commandbus_process.testing", ["pytest", "_pytest", "hypothesis", "pytest_asyncio"]),
        ("commandbus_process.testing.contract", ["hypothesis", "pytest_asyncio"]),
    ],
)
def test_what_an_import_does_not_import(module: str, without: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {without!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
