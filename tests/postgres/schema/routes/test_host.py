"""Each route in a host application, from an installed wheel in a fresh environment and from an editable checkout."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg
import pytest

from commandbus_process.migrations import location
from tests.support import ROOT
from tests.support.databases import execute
from tests.support.host import Host, environment_with_wheel

VERSION = "commandbus.commandbus_process_version"
Make = Callable[[Mapping[str, str]], Host]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_with_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(params=["wheel", "checkout"])
def installed(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(installed: str, request: pytest.FixtureRequest, tmp_path: Path, empty_database_url: str) -> Make:
    python = request.getfixturevalue("wheel") if installed == "wheel" else Path(sys.executable)

    def made(parts: Mapping[str, str]) -> Host:
        host = Host(tmp_path / "host", python, empty_database_url, parts)
        where = host.run("-c", "import commandbus_process; print(commandbus_process.__file__)").stdout
        assert where.startswith(str(ROOT)) is (installed == "checkout")
        return host

    return made


def revision(url: str, table: str = VERSION) -> list[str]:
    with psycopg.connect(url) as connection:
        return [
            name for (name,) in connection.execute(f"SELECT version_num FROM {table} ORDER BY 1".encode()).fetchall()
        ]


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^pg_|information_schema'"
        )
        return {name for (name,) in found.fetchall()}


IN_A_REVISION = {
    "revision_imports": "from commandbus_process import migrations",
    "upgrade": 'migrations.upgrade(op.get_bind(), to="commandbus_0005")',
    "downgrade": 'migrations.downgrade(op.get_bind(), "base")',
}
IN_THE_ENVIRONMENT = {"before": 'upgrade(connection, to="commandbus_0005")'}


@pytest.mark.parametrize(
    ("parts", "path", "installed"),
    [
        pytest.param(IN_A_REVISION, "public", "wheel", id="in a revision"),
        pytest.param(IN_A_REVISION, "public", "checkout", id="in a revision, from a checkout"),
        pytest.param(IN_A_REVISION, "public, commandbus", "wheel", id="with our schema on the search path"),
        pytest.param(IN_A_REVISION, "commandbus, public", "wheel", id="with our schema first on the search path"),
        pytest.param(IN_THE_ENVIRONMENT, "public", "wheel", id="in env.py"),
        pytest.param(IN_THE_ENVIRONMENT, "public", "checkout", id="in env.py, from a checkout"),
    ],
)
def test_one_upgrade_of_the_host_does_it_all(
    make: Make, parts: Mapping[str, str], empty_database_url: str, path: str
) -> None:
    with psycopg.connect(empty_database_url) as connection:
        if path.startswith("commandbus"):
            connection.execute("CREATE SCHEMA commandbus")  # then the host's own tables are made in it, too
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET search_path TO {path}".encode())
    host = make(parts)
    host.alembic("upgrade", "head")
    assert revision(empty_database_url) == ["commandbus_0005"]
    assert {"commandbus.process", "commandbus.process_audit", "shop.orders"} < tables(empty_database_url)
    assert "No new upgrade operations detected" in host.alembic("check")
    assert host.offered() == "pass"
    host.alembic("upgrade", "head")
    host.alembic("downgrade", "0001")
    assert "shop.orders" not in tables(empty_database_url)
    if parts is IN_A_REVISION:
        assert "commandbus.process" not in tables(empty_database_url)
    host.alembic("upgrade", "head")
    assert revision(empty_database_url) == ["commandbus_0005"]


def test_without_the_filters_the_host_would_offer_to_drop_our_tables(make: Make) -> None:
    host = make({**IN_A_REVISION, "filters": ""})
    host.alembic("upgrade", "head")
    assert "drop_table('process_audit'" in host.offered()


def test_a_table_of_the_hosts_own_with_our_name_is_the_hosts(make: Make, empty_database_url: str) -> None:
    host = make(IN_A_REVISION)
    host.alembic("upgrade", "head")
    execute(empty_database_url, "CREATE TABLE public.process (id integer PRIMARY KEY)")
    assert "drop_table('process')" in host.offered()
    assert "process_audit" not in host.offered()


def test_a_labelled_branch(make: Make, installed: str, empty_database_url: str) -> None:
    ours = "commandbus_process:_migrations/versions" if installed == "wheel" else location() / "versions"
    host = make({"locations": f"    {ours}\ncommandbus_process_schema = of the bus\n"})
    host.alembic("upgrade", "heads")
    assert revision(empty_database_url, "alembic_version") == ["0002", "commandbus_0005"]
    assert {"of the bus.process", "of the bus.process_audit", "shop.orders"} < tables(empty_database_url)
    check = """
import asyncio, os
from sqlalchemy.ext.asyncio import create_async_engine
from commandbus_process.migrations import check_schema

async def main():
    engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
    print(await check_schema(engine, schema="of the bus", version_table="alembic_version"))

asyncio.run(main())
"""
    assert "found='commandbus_0005'" in host.run("-c", check).stdout
    host.alembic("downgrade", "commandbus_process@base")
    assert revision(empty_database_url, "alembic_version") == ["0002"]
    assert "of the bus.process" not in tables(empty_database_url)


def test_the_command_line(make: Make, empty_database_url: str) -> None:
    host = make({})
    for arguments, told in ((["upgrade"], "base -> commandbus_0005"), (["check"], "commandbus_0005")):
        result = host.run("-m", "commandbus_process.migrations", *arguments)
        assert (result.returncode, result.stdout.strip()) == (0, told), result.stderr
    result = host.run("-m", "commandbus_process.migrations", "adopt")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "They fit" in result.stdout
    printed = host.run("-m", "commandbus_process.migrations", "sql").stdout
    files = [(ROOT / f"tests/sql/migrations/upgrade_commandbus_000{number}.sql").read_text() for number in range(1, 6)]
    for text in files:
        assert text.partition("-- Running")[2].rpartition("COMMIT;")[0] in printed
    assert revision(empty_database_url) == ["commandbus_0005"]


APPLICATION = """
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import PostgresProcessRepository, ProcessMetadata, SchemaTooOldError
from commandbus_process.migrations import check_schema, migrate

SCHEMA = "Of the \\"bus\\""
engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
repository = PostgresProcessRepository(engine, schema=SCHEMA)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    try:
        await check_schema(engine, schema=SCHEMA)
    except SchemaTooOldError as error:
        print(error)
    await migrate(engine, schema=SCHEMA)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, object]:
    return (await check_schema(engine, schema=SCHEMA))._asdict()


@app.post("/orders/{number}")
async def order(number: int) -> dict[str, object]:
    process = ProcessMetadata(domain="orders", process_id=uuid4(), process_type="order", state={"number": number})
    async with engine.begin() as conn:
        await conn.execute(text("INSERT INTO shop.orders VALUES (:number)"), {"number": number})
        await repository.save(process, conn)
    return {"version": process.version}


with TestClient(app) as client:
    print(client.get("/health").json())
    print(client.post("/orders/7").json())
    try:
        client.post("/orders/7")
    except Exception as error:
        print(type(error).__name__)
"""


def test_a_web_application_that_migrates_when_it_starts(make: Make, empty_database_url: str) -> None:
    host = make({})
    host.alembic("upgrade", "head")
    (host.folder / "app.py").write_text(APPLICATION)
    result = host.run("app.py")
    assert result.returncode == 0, result.stderr
    first, *others = result.stdout.splitlines()
    assert "has no tables of commandbus_process" in first
    assert others == [
        "{'found': 'commandbus_0005', 'wanted': 'commandbus_0005', 'is_newer': False}",
        "{'version': 1}",
        "IntegrityError",
    ]
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute('SELECT count(*) FROM "Of the ""bus""".process').fetchone() == (1,)
