"""The wheel, built from this checkout."""

import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def build_wheel(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    [built] = folder.glob("*.whl")
    return built
