"""The README and each page of `docs/` do what they say, and their links lead somewhere.

`pages.py` says how a page is written.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import commandbus_process
from commandbus_process import grants, guards, migrations
from tests.docs.pages import EMPTY, PAGES, README, ROOT, PageError, prose, runnable_blocks
from tests.support.databases import Server, fresh_database

MARKDOWN = sorted({*PAGES, *ROOT.glob("*.md")})
TOLD = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_prints_what_it_says(page: Path, newest_server: Server) -> None:
    blocks = runnable_blocks(page)
    template = [] if EMPTY in page.read_text(encoding="utf-8") else [newest_server.template]
    with fresh_database(newest_server.url, *template) as url:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.docs.pages", str(page)],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    printed = zip(blocks, json.loads(done.stdout), strict=True)
    assert [f"line {block.line}\n{output}" for block, output in printed] == [
        f"line {block.line}\n{block.expected}" for block in blocks
    ]


@pytest.mark.parametrize("page", MARKDOWN, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))
    inside = [link for link in links if not re.match(r"\w+:", link)]
    assert [link for link in inside if not leads_somewhere(page, link)] == []


@pytest.mark.parametrize("page", MARKDOWN, ids=named)
def test_paths_in_backticks_are_there(page: Path) -> None:
    paths = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|sql|toml|json|csv|svg))`", prose(page))
    assert [path for path in paths if not (ROOT / path).exists() and not path.startswith("../")] == []


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not heading or heading in anchors(target)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *#*$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (anchor if not number else f"{anchor}-{number}") in found:
            number += 1
        found.add(anchor if not number else f"{anchor}-{number}")
    return found


def repository_methods() -> list[str]:
    return [name for name in vars(commandbus_process.ProcessRepository) if not name.startswith("_")]


def test_the_readme_has_each_method() -> None:
    methods = repository_methods()
    assert len(methods) >= 13
    assert [name for name in methods if f"`{name}(" not in README.read_text(encoding="utf-8")] == []


def test_each_public_name_is_told() -> None:
    bases = {"ProcessError", "StepError"}
    names = {*repository_methods(), *commandbus_process.__all__} - bases
    names |= {function.__name__ for function in (grants.grant_statements, guards.guard_statements)}
    names.add(migrations.alembic_config.__name__)
    assert sorted(name for name in names if not re.search(rf"(?<![\w]){name}\b", TOLD)) == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


# --- the reader of pages


def test_blocks_are_read_as_the_convention_has_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        """# Page

```python
print(1)
```

```text
1
```

<!-- not run: there is no such server -->
```python
raise SystemExit
```

<!--
```python
hidden = 2
```
-->

```sh
rm -rf /
```

<!-- run -->

```sql
SELECT 1
```

```
a picture
```
"""
    )
    assert [(block.line, block.language, block.code, block.expected) for block in runnable_blocks(page)] == [
        (4, "python", "print(1)\n", "1\n"),
        (18, "python", "hidden = 2\n", ""),
        (29, "sql", "SELECT 1\n", ""),
    ]


@pytest.mark.parametrize("before", ["", "```sh\nls\n```\n", "```python\nprint(1)\n```\n```text\n1\n```\n"])
def test_a_text_block_that_nothing_is_compared_with_is_refused(before: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{before}```text\n1\n```\n")
    with pytest.raises(PageError, match="no block that is run"):
        runnable_blocks(page)


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("#b-c", True),
        ("#b", False),
        ("page.md#a", True),
        ("page.md#a-1", True),
        ("page.md#a-2", False),
        ("nowhere.md", False),
    ],
)
def test_a_link_that_leads_nowhere_is_noticed(link: str, leads: bool) -> None:  # noqa: FBT001 - a case
    folder = Path(__file__).parent / "links"
    assert leads_somewhere(folder / "page.md", link) is leads
