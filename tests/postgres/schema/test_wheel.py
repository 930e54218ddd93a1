"""The migrations of an installed wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.databases import async_url
from tests.support.wheel import build_wheel


def test_the_wheel_migrates_a_database_far_from_any_checkout(tmp_path: Path, empty_database_url: str) -> None:
    zipfile.ZipFile(build_wheel(tmp_path)).extractall(tmp_path / "site")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from alembic import command
from commandbus_process import migrations
assert migrations.__file__.startswith({str(tmp_path)!r})
command.upgrade(migrations.alembic_config({empty_database_url!r}), "head")
command.check(migrations.alembic_config({empty_database_url!r}))
from commandbus_process.migrations.adoption import compare
from sqlalchemy import create_engine
with create_engine({async_url(empty_database_url)!r}).connect() as connection:
    assert compare(connection).fits
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
