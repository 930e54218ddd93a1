"""A host application: its own Alembic history, tables in two schemas, and this library beside them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.wheel import build_wheel

_INI = """
[alembic]
script_location = %(here)s/history
path_separator = newline
version_locations =
    %(here)s/history/versions
"""

_ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, pool
import os
{imports}

metadata = MetaData()
Table("settings", metadata, Column("id", Integer, primary_key=True), Column("process", Text))
process.to_metadata(metadata)  # for a foreign key
Table("orders", metadata, Column("id", Integer, primary_key=True), schema="shop")

url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")
engine = create_engine(url, poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=metadata, include_schemas=True, {filters}
    )
    with context.begin_transaction():
        {before}
        context.run_migrations()
"""

FILTERS = "include_name=include_name, include_object=include_object"

_FIRST = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "0001", None

def upgrade():
    op.execute("CREATE SCHEMA shop")
    op.create_table("settings", sa.Column("id", sa.Integer, primary_key=True), sa.Column("process", sa.Text))

def downgrade():
    op.drop_table("settings")
    op.execute("DROP SCHEMA shop")
"""

_SECOND = """
from alembic import op
import sqlalchemy as sa
{imports}

revision, down_revision = "0002", "0001"

def upgrade():
    {upgrade}
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True), schema="shop")

def downgrade():
    op.drop_table("orders", schema="shop")
    {downgrade}
"""


class Host:
    """A folder with a host application.

    Args:
        folder: The folder, empty.
        python: The interpreter in whose environment the library is installed.
        url: The database.
        parts: What the templates above leave open: `imports`, `filters`, `before`, `revision_imports`, `upgrade`,
            `downgrade`, and `locations`, more lines of the option `version_locations`.
    """

    def __init__(self, folder: Path, python: Path, url: str, parts: Mapping[str, str]) -> None:
        self.folder = folder
        self._python = python
        self._url = url
        versions = folder / "history" / "versions"
        versions.mkdir(parents=True)
        (folder / "alembic.ini").write_text(_INI + parts.get("locations", ""))
        imports = (
            "from commandbus_process.migrations import include_name, include_object, upgrade\n"
            "from commandbus_process.tables import process"
        )
        (folder / "history" / "env.py").write_text(
            _ENV.format(imports=imports, filters=parts.get("filters", FILTERS), before=parts.get("before", "pass"))
        )
        (folder / "history" / "script.py.mako").write_text(
            "revision, down_revision = ${repr(up_revision)}, ${repr(down_revision)}\nfrom alembic import op\n"
            "import sqlalchemy as sa\ndef upgrade():\n    ${upgrades}\n"
        )
        (versions / "0001_first.py").write_text(_FIRST)
        (versions / "0002_second.py").write_text(
            _SECOND.format(
                imports=parts.get("revision_imports", ""),
                upgrade=parts.get("upgrade", "pass"),
                downgrade=parts.get("downgrade", "pass"),
            )
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the host's folder and environment."""
        return subprocess.run(
            [str(self._python), *arguments],
            cwd=self.folder, env={**_environment(), "DATABASE_URL": self._url},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def alembic(self, *arguments: str) -> str:
        """Run the host's Alembic, and return what it printed."""
        result = self.run("-m", "alembic", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def offered(self) -> str:
        """Return what `alembic revision --autogenerate` would do."""
        before = set((self.folder / "history" / "versions").glob("*.py"))
        self.alembic("revision", "--autogenerate", "-m", "offered")
        [made] = set((self.folder / "history" / "versions").glob("*.py")) - before
        text = made.read_text()
        made.unlink()
        body = text.partition("def upgrade():")[2].splitlines()
        return "\n".join(line.strip() for line in body if line.strip() and not line.strip().startswith("#"))


def _environment() -> dict[str, str]:
    """The environment without what would let the host see this checkout."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "DATABASE_URL"}}


def environment_with_wheel(folder: Path) -> Path:
    """Make a fresh virtual environment with the wheel in it, and return its interpreter.

    The libraries that the wheel needs are those of the tests' own environment, found by a path: pip would only copy
    them. The library itself is there only through the wheel.
    """
    wheel = build_wheel(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=120)
    python = folder / "venv" / "bin" / "python"
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *install], check=True, capture_output=True, timeout=120
    )
    [ours] = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text(f"{ours}\n")
    return python
