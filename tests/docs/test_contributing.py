"""The map in CONTRIBUTING.md has each module of the package, and no other; its commands are those of the Makefile."""

import re

from tests.support import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def mapped() -> set[str]:
    """The modules on the map, by their paths. An indentation of two is a folder's inside."""
    found: set[str] = set()
    folders: list[str] = []
    lines = PAGE.split("\ncommandbus_process/\n")[1].split("\nalembic/")[0].splitlines()
    for indentation, name in re.findall(r"^( +)([\w./]+)", "\n".join(lines), re.MULTILINE):
        del folders[len(indentation) // 2 - 1 :]
        if name.endswith("/"):
            folders.append(name)
        elif name.endswith(".py"):
            found.add("".join((*folders, name)))
    return found


def test_the_map_has_every_module_and_no_other() -> None:
    package = ROOT / "commandbus_process"
    assert mapped() == {str(path.relative_to(package)) for path in package.rglob("*.py")}


def test_the_map_has_every_folder_that_is_there() -> None:
    folders = set(re.findall(r"^(\w+)/  ", PAGE, re.MULTILINE))
    there = {path.name for path in ROOT.iterdir() if path.name.isidentifier() and any(path.glob("**/*.py"))}
    assert there - {"commandbus_process"} <= folders
    assert {each for each in folders if not (ROOT / each).is_dir()} == set()


def test_every_command_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^(\w[\w.-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = set(re.findall(r"`make ([a-z][a-z0-9.-]*)", PAGE))
    assert told <= targets
    assert targets - told == {"clean"}


def test_every_folder_of_tests_has_its_row() -> None:
    rows = set(re.findall(r"^\| `tests/(\w+)`", PAGE, re.MULTILINE))
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists()}
    assert rows == folders | {"sql"}
