"""`docs/versions.md` names the versions that `pyproject.toml` allows, and those that the tests run on."""

import re
import tomllib

from tests.support import ROOT
from tests.support.databases import NAMED, VERSIONS

PAGE = (ROOT / "docs" / "versions.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROWS = dict(re.findall(r"^\| (\w+) \| (.+) \|$", PAGE.split("\n## What is supported\n")[1], re.MULTILINE))


def test_the_pythons() -> None:
    prefix = "Programming Language :: Python :: "
    classified = [each.removeprefix(prefix) for each in PROJECT["classifiers"] if re.match(rf"{prefix}3\.\d", each)]
    supported = ROWS["Python"].split(" | ")[0]
    assert supported == ", ".join(classified)
    assert PROJECT["requires-python"] == f">={classified[0]}"


def test_the_servers() -> None:
    lowest, highest = map(int, re.findall(r"\d+", ROWS["PostgreSQL"].split(" | ")[0]))
    tested = {int(each) for each in re.findall(r"\d+", ROWS["PostgreSQL"].split(" | ")[1])}
    assert tested <= set(range(lowest, highest + 1))
    if not NAMED:
        assert tested == set(VERSIONS)


def test_the_lowest_version_of_each_library() -> None:
    libraries = {"SQLAlchemy", "psycopg", "Pydantic", "Alembic"}
    required = [re.split(r"[\[>]", each)[0].lower() for each in PROJECT["dependencies"]]
    assert {each.lower() for each in libraries} == set(required) - {"typing-extensions"}
    for library in libraries:
        [requirement] = [each for each in PROJECT["dependencies"] if each.lower().startswith(library.lower())]
        lowest = requirement.split(">=")[1].split(",")[0]
        assert ROWS[library].startswith(lowest)
