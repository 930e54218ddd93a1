"""The README's quick start, run as it is written."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

README = (ROOT / "README.md").read_text()


def blocks(after: str, language: str) -> list[str]:
    section = README.split(f"\n## {after}\n")[1].split("\n## ")[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [text for named, text in found if named == language]


def test_the_quick_start_prints_what_it_says(empty_database_url: str, tmp_path: Path) -> None:
    script = tmp_path / "quick_start.py"
    script.write_text("\n".join([f"DATABASE_URL = {empty_database_url!r}", *blocks("Quick start", "python")]))
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    [_install, promised] = blocks("Quick start", "")
    assert result.stdout == promised


def test_every_method_and_error_is_told() -> None:
    import commandbus_process  # noqa: PLC0415 - its names are what is tested

    methods = [name for name in vars(commandbus_process.ProcessRepository) if not name.startswith("_")]
    assert len(methods) >= 8
    errors = [name for name in commandbus_process.__all__ if name.endswith("Error")]
    bases = {"ProcessError", "StepError"}
    missing = [name for name in [*methods, *errors] if name not in bases and f"`{name}" not in README]
    assert missing == []
