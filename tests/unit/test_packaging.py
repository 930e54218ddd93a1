"""What is installed: the names, the type marker, and the migrations, from a wheel and from a checkout."""

import zipfile
from importlib import metadata
from pathlib import Path

import commandbus_process
from commandbus_process.migrations import alembic_config
from tests.support import ROOT
from tests.support.wheel import build_wheel


def test_the_wheel_has_the_package_and_nothing_beside_it(tmp_path: Path) -> None:
    names = zipfile.ZipFile(build_wheel(tmp_path)).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"commandbus_process"}
    assert "commandbus_process/py.typed" in names
    revisions = {path.name for path in (ROOT / "alembic" / "versions").glob("*.py")}
    assert revisions == {
        Path(name).name for name in names if name.startswith("commandbus_process/_migrations/versions")
    }


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
