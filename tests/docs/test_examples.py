"""The examples, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PRINTED = {
    "outbox.py": """\
refused
orders 1
process 1
outbox 1
sent: ChargeCard
""",
    "process_manager.py": """\
ReserveStock SUCCESS - delivered again, it sends []
ChargeCard FAILED - delivered again, it sends []
ReleaseStock SUCCESS - delivered again, it sends []
""",
    "worker.py": """\
to ship: 40
shipped: 40
shipped twice: 0
""",
}

TESTS = {"test_process_manager.py": 3}
"""How many tests pass in each example of tests."""

CLIENT = """\
import asyncio
from uuid import UUID

from httpx import ASGITransport, AsyncClient

from examples.web import app, lifespan

order = "/orders/00000000-0000-4000-8000-000000000001"


async def main():
    async with lifespan(app), AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        print("placed", *[(await client.put(order)).status_code for _ in range(2)])
        [sent] = (await client.get(order)).json()
        print(sent["command_type"], sent["reply_outcome"])
        path = f"{order}/replies/{sent['command_id']}"
        for outcome in ["SUCCESS", "SUCCESS", "FAILED", "PERHAPS"]:
            answer = await client.put(path, params={"outcome": outcome})
            print(outcome, answer.status_code, answer.json() if answer.is_success else "")
        other = f"{order}/replies/{UUID(int=2)}"
        print("unknown command", (await client.put(other, params={"outcome": "SUCCESS"})).status_code)
        nowhere = path.replace("0001/replies", "0002/replies")
        print("unknown order", (await client.put(nowhere, params={"outcome": "SUCCESS"})).status_code)
        [replied] = (await client.get(order)).json()
        print(replied["command_type"], replied["reply_outcome"])


asyncio.run(main())
"""
SERVED = """\
placed 201 409
ChargeCard None
SUCCESS 200 True
SUCCESS 200 False
FAILED 409\x20
PERHAPS 422\x20
unknown command 503
unknown order 404
ChargeCard SUCCESS
"""


def printed_by(arguments: list[str], database_url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_example_is_run() -> None:
    assert {path.name for path in EXAMPLES} == {*PRINTED, *TESTS, "web.py"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_fits_on_a_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_should(name: str, empty_database_url: str) -> None:
    assert printed_by([f"examples/{name}"], empty_database_url) == PRINTED[name]


def test_the_web_application_answers(empty_database_url: str) -> None:
    assert printed_by(["-c", CLIENT], empty_database_url) == SERVED


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_an_example_pass_without_a_server(name: str) -> None:
    printed = printed_by(["-m", "pytest", "-q", "-p", "no:cacheprovider", f"examples/{name}"], "")
    assert f"\n{TESTS[name]} passed in" in printed
