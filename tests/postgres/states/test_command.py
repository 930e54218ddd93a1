"""`python -m commandbus_process.states`: which stored states fit a new type, and which versions are stored."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import BaseModel

from commandbus_process import StateVersions
from commandbus_process.states import main
from tests.support.databases import Server, as_role, execute
from tests.support.versions import THIRD, THIRD_WRITING, FirstOrder, ThirdOrder, rename

BY_TYPE = {"order": THIRD, "refund": FirstOrder}
LOSES_THE_AMOUNT = StateVersions(
    ThirdOrder,
    version=3,
    upcasters={2: rename},
    downcasters={3: lambda state: {**state, "total": 0}},
    write_version=2,
)
WRITES_FIRST = THIRD_WRITING[1]
NUMBER = 7
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"


class WithLimit(BaseModel):
    name: str
    total: int


HERE = "tests.postgres.states.test_command"
Run = Callable[..., tuple[int, str, str]]

ROWS = """
INSERT INTO commandbus.process (domain, process_id, process_type, status, state_version, state) VALUES
    ('orders', '{0}', 'order', 'PENDING', NULL, '{{"name": "Ada Lovelace", "total": 1, "count": 0, "done": []}}'),
    ('orders', '{1}', 'order', 'WAITING', NULL, '{{"name": "swordfish", "total": "swordfish", "done": []}}'),
    ('orders', '{2}', 'order', 'WAITING', 2, '{{"first": "A", "last": "L", "total": 2, "done": []}}'),
    ('others', '{3}', 'order', 'WAITING', 4, '{{"swordfish": 1}}'),
    ('orders', '{4}', 'order', 'COMPLETED', NULL, '{{"swordfish": 1}}'),
    ('orders', '{5}', 'order', 'FAILED', NULL, '{{}}'),
    ('orders', '{6}', 'refund', 'PENDING', 2, '{{"swordfish": 1}}')
"""
IDS = [UUID(int=number) for number in range(7)]


@pytest.fixture
def run(database_url: str, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command as a reader, and returns its exit status and what it has printed."""
    monkeypatch.setenv("DATABASE_URL", as_role(database_url, server.reader))
    execute(database_url, ROWS.format(*IDS))

    def run_command(*arguments: str) -> tuple[int, str, str]:
        status = main(list(arguments))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


def test_which_live_states_fit(run: Run) -> None:
    status, out, err = run("check", "--state-type", f"{HERE}:THIRD", "--process-type", "order")
    assert (status, err) == (1, "")
    assert out.splitlines()[:5] == [
        "process type  version  fit  do not fit",
        "order               1    1           1",
        "order               2    1           0",
        "order               4    0           1",
        "",
    ]
    assert sorted(out.splitlines()[5:]) == sorted(
        [
            f"orders {IDS[1]} (order, version 1): amount: {NO_INTEGER}",
            f"others {IDS[3]} (order, version 4): it is newer than version 3",
        ]
    )
    assert "swordfish" not in out


def test_a_mapping_looks_at_its_own_types(run: Run) -> None:
    status, out, _ = run("check", "--state-type", f"{HERE}:BY_TYPE", "--domain", "orders")
    assert status == 1
    assert f"orders {IDS[6]} (refund, version 2): it is newer than version 1" in out
    assert str(IDS[3]) not in out
    status, out, _ = run("check", "--state-type", f"{HERE}:WithLimit", "--process-type", "refund")
    assert (status, out.splitlines()[1].split()) == (1, ["refund", "2", "0", "1"])


def test_if_everything_fits_the_status_is_0(run: Run, database_url: str) -> None:
    execute(database_url, f"DELETE FROM commandbus.process WHERE process_id NOT IN ('{IDS[0]}', '{IDS[2]}')")
    status, out, _ = run("check", "--state-type", f"{HERE}:THIRD")
    assert (status, [line.split() for line in out.splitlines()[1:]]) == (
        0,
        [["order", "1", "1", "0"], ["order", "2", "1", "0"]],
    )


def test_a_state_that_could_not_be_written_again_does_not_fit(run: Run, database_url: str) -> None:
    execute(database_url, f"DELETE FROM commandbus.process WHERE process_id <> '{IDS[2]}'")
    assert run("check", "--state-type", f"{HERE}:WRITES_FIRST")[0] == 0
    status, out, _ = run("check", "--state-type", f"{HERE}:LOSES_THE_AMOUNT")
    assert status == 1
    assert "it can be read, and not be written again: state" in out


def test_only_the_first_ones_are_listed_and_all_are_counted(run: Run, database_url: str) -> None:
    execute(
        database_url,
        "INSERT INTO commandbus.process (domain, process_id, process_type) "
        "SELECT 'orders', gen_random_uuid(), 'order' FROM generate_series(1, 2500)",
    )
    status, out, _ = run("check", "--state-type", f"{HERE}:FirstOrder", "--domain", "orders", "--show", "3")
    lines = out.splitlines()
    assert status == 1
    assert [line.split() for line in lines if line.startswith("order ")] == [
        ["order", "1", "1", "2501"],
        ["order", "2", "0", "1"],
    ]
    assert sum("Field required" in line or "it is newer" in line or "valid integer" in line for line in lines) == 3
    assert lines[-1] == "and 2500 more"


def test_the_histogram_counts_the_versions_of_each_type(run: Run) -> None:
    status, out, _ = run("histogram")
    assert status == 0
    assert out.splitlines() == [
        "process type  version  live  ended  erased",
        "order               1     2      1       1",
        "order               2     1      0       0",
        "order               4     1      0       0",
        "refund              2     1      0       0",
        "",
        "order: the oldest state is at version 1; no upcaster can go",
        "refund: the oldest state is at version 2; upcasters from versions below 2 can go",
    ]


def test_the_histogram_says_which_upcasters_can_go(run: Run, database_url: str) -> None:
    last = run("histogram", "--state-type", f"{HERE}:THIRD")[1].splitlines()[-1]
    assert last == "the oldest state is at version 1; no upcaster can go"
    execute(database_url, "DELETE FROM commandbus.process WHERE state_version IS NULL AND state <> '{}'")
    last = run("histogram", "--state-type", f"{HERE}:THIRD")[1].splitlines()[-1]  # the erased one does not count
    assert last == "the oldest state is at version 2; the upcasters from 1 can go"
    lines = run("histogram", "--state-type", f"{HERE}:BY_TYPE")[1].splitlines()[-2:]
    assert lines == [
        "order: the oldest state is at version 2; the upcasters from 1 can go",
        "refund: the oldest state is at version 2; no upcaster can go",
    ]
    execute(database_url, "UPDATE commandbus.process SET state_version = 3 WHERE state_version = 2")
    last = run("histogram", "--state-type", f"{HERE}:THIRD", "--process-type", "order")[1].splitlines()[-1]
    assert last == "the oldest state is at version 3; the upcasters from 1, 2 can go"
    execute(database_url, "DELETE FROM commandbus.process")
    assert run("histogram", "--state-type", f"{HERE}:THIRD")[0] == 0


@pytest.mark.own_database
def test_the_schema_can_have_any_name(run: Run, database_url: str, server: Server) -> None:
    execute(
        database_url,
        'CREATE SCHEMA "Odd ""name"; CREATE TABLE "Odd ""name".process (LIKE commandbus.process INCLUDING ALL); '
        f'GRANT USAGE ON SCHEMA "Odd ""name" TO {server.reader}; '
        f'GRANT SELECT ON "Odd ""name".process TO {server.reader}',
    )
    status, out, _ = run("check", "--state-type", f"{HERE}:THIRD", "--schema", 'Odd "name')
    assert (status, len(out.splitlines())) == (0, 1)
    assert len(run("histogram")[1].splitlines()) > 1


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("nothing", "must be like app.models:OrderState"),
        (f"{HERE}:", "must be like app.models:OrderState"),
        ("no.such.module:Order", "cannot be imported: No module named"),
        (f"{HERE}:Missing", "has no attribute 'Missing'"),
        (f"{HERE}:NUMBER", "must be a Pydantic model"),
    ],
)
def test_a_type_that_cannot_be_used(run: Run, named: str, told: str) -> None:
    status, out, err = run("check", "--state-type", named)
    assert (status, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_a_type_that_the_mapping_lacks(run: Run) -> None:
    status, _, err = run("check", "--state-type", f"{HERE}:BY_TYPE", "--process-type", "parcel")
    assert status == 2
    assert "'parcel'" in err


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "no database is named"),
        ("swordfish", "cannot be parsed"),
        ("mysql://user:swordfish@host/db", "must begin with postgresql://"),
        ("postgresql://user:swordfish@127.0.0.1:1/db", "the database cannot be read"),
    ],
)
def test_a_database_that_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch, url: str, told: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    for arguments in (("check", "--state-type", f"{HERE}:THIRD"), ("histogram",)):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert told in err
        assert "swordfish" not in err


def test_a_schema_without_tables(run: Run) -> None:
    status, _, err = run("histogram", "--schema", "nowhere")
    assert status == 2
    assert 'relation "nowhere.process" does not exist' in err


def test_it_finds_the_modules_of_the_folder_in_which_it_runs(run: Run, tmp_path: Path) -> None:
    """And is a command."""
    del run  # it made the rows
    (tmp_path / "app").mkdir()
    (tmp_path / "app/models.py").write_text(
        "from pydantic import BaseModel\nclass Outer:\n    class OrderState(BaseModel):\n        missing: int\n"
    )
    command = [
        sys.executable,
        "-m",
        "commandbus_process.states",
        "check",
        "--state-type",
        "app.models:Outer.OrderState",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert f"orders {IDS[0]} (order, version 1): missing: Field required" in done.stdout
    assert "swordfish" not in done.stdout
