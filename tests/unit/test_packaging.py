"""What is installed: the names, the type marker, and the migrations, from a wheel and from a checkout."""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import commandbus_process
from commandbus_process.migrations import alembic_config
from tests.support import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_package_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"commandbus_process"}
    assert "commandbus_process/py.typed" in names
    revisions = {path.name for path in (ROOT / "alembic" / "versions").glob("*.py")}
    assert revisions == {
        Path(name).name for name in names if name.startswith("commandbus_process/_migrations/versions")
    }


def test_the_wheel_migrates_a_database_far_from_any_checkout(
    wheel: Path, tmp_path: Path, empty_database_url: str
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from alembic import command
from commandbus_process import migrations
assert migrations.__file__.startswith({str(tmp_path)!r})
command.upgrade(migrations.alembic_config({empty_database_url!r}), "head")
command.check(migrations.alembic_config({empty_database_url!r}))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_checkout_finds_its_own_migrations() -> None:
    assert alembic_config().get_main_option("script_location") == str(ROOT / "alembic")


def test_public_names() -> None:
    assert sorted(commandbus_process.__all__) == commandbus_process.__all__
    assert all(hasattr(commandbus_process, name) for name in commandbus_process.__all__)


def test_run_time_dependencies_are_the_ones_that_the_readme_gives_reasons_for() -> None:
    required = metadata.requires("commandbus-process")
    assert required is not None
    section = (ROOT / "README.md").read_text().split("\n## Install\n")[1].split("\n## ")[0]
    names = [requirement.split(">=")[0].split("<")[0] for requirement in required]
    assert len(names) == 5
    assert [name for name in names if f"`{name}`" not in section] == []
