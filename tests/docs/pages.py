"""Read the Markdown pages, and run one: `python -m tests.docs.pages docs/state.md` prints the outputs of its blocks.

How a page is written:

- Its Python blocks run in order, in one namespace and one event loop, like lines pasted into `python -m asyncio`. So
  `await` may stand outside a function. Warnings are errors, and nothing may be written to stderr.
- `DATABASE_URL` is in the environment. It names a migrated database of the page's own, for its administrator. With
  `<!-- database: empty -->` anywhere in the page, the database is not migrated.
- What a block prints must be exactly the `text` block that comes next. A block without one after it prints nothing.
  A picture, or output that is not compared, stands in a block without a language.
- `<!-- not run: why -->` directly above a Python block leaves it out.
- `<!-- run -->` directly above an `sh` or `sql` block runs it: by bash in the repository's root, or in one transaction.
  Without it, such a block is only shown.
- A block inside an HTML comment runs too, and no reader sees it. Use it for set-up and checks that would only disturb.
- Links to files and headings of the repository must lead somewhere. So must paths in backticks that have a slash and a
  suffix.
"""

import ast
import asyncio
import inspect
import io
import json
import os
import re
import subprocess
import sys
import types
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import psycopg

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
EMPTY = "<!-- database: empty -->"

_FENCED = re.compile(
    r"^(?P<open>```+)(?P<language>\w*)[^\n`]*\n(?P<code>.*?)^(?P=open)[ \t]*$", re.DOTALL | re.MULTILINE
)
_NOT_RUN = re.compile(r"<!-- not run: \S[^>]*-->\n*\Z")
_RUN = re.compile(r"<!-- run -->\n*\Z")


@dataclass(frozen=True)
class Block:
    """A block that is run.

    Attributes:
        line: The line of the page that the code begins in, from 1 on.
        language: `python`, `sh` or `sql`.
        code: What is run.
        expected: What it is to print.
    """

    line: int
    language: str
    code: str
    expected: str


class PageError(Exception):
    """The page is not written as the tests need it."""


def runnable_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that are run, in order."""
    markdown = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    previous_is_run = False
    for match in _FENCED.finditer(markdown):
        language, code = match["language"], match["code"]
        before = markdown[: match.start()]
        line = before.count("\n") + 2
        if language == "text":
            if not previous_is_run:
                raise PageError(f"{page.name}, line {line}: no block that is run stands before this text block")
            last = blocks.pop()
            blocks.append(Block(last.line, last.language, last.code, code))
            previous_is_run = False
            continue
        previous_is_run = (language == "python" and not _NOT_RUN.search(before)) or (
            language in {"sh", "sql"} and _RUN.search(before) is not None
        )
        if previous_is_run:
            blocks.append(Block(line, language, code, ""))
    return blocks


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def main(page: Path) -> None:
    """Run the blocks of a page, and print a JSON list of what each of them printed."""
    module = types.ModuleType("__main__")  # where Pydantic, dataclasses and pickle look names up
    sys.modules["__main__"] = module
    outputs: list[str] = []
    with asyncio.Runner() as runner:
        for block in runnable_blocks(page):
            printed = io.StringIO()
            with redirect_stdout(printed):
                if block.language == "python":
                    _run_python(block, page, module, runner)
                elif block.language == "sql":
                    _run_sql(block)
                else:
                    _run_shell(block)
            outputs.append(printed.getvalue())
    sys.stdout.write(json.dumps(outputs))


def _run_python(block: Block, page: Path, module: types.ModuleType, runner: asyncio.Runner) -> None:
    # The empty lines make a traceback name the page's own line.
    source = "\n" * (block.line - 1) + block.code
    compiled = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(compiled, module.__dict__)  # noqa: S307 - a page of this repository
    if inspect.iscoroutine(result):
        runner.run(result)


def _run_sql(block: Block) -> None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute(block.code.encode())


def _run_shell(block: Block) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-euo", "pipefail", "-c", block.code],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    sys.stdout.write(done.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
