"""Make tables, compare them, stamp them, upgrade them, and use them."""

import psycopg
from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process.migrations import REVISIONS, alembic_config
from commandbus_process.migrations.adoption import Adoption, AdoptionObject, compare
from tests.postgres.adoption.variations import Variation
from tests.support.databases import async_url, execute
from tests.support.everything import do_everything
from tests.support.schema import VERSIONS, adopted, seed

HEAD = REVISIONS[-1]


def make(url: str, variation: Variation) -> None:
    """Make the tables, with rows, and no version table."""
    if variation.at == REVISIONS[0]:
        seed(url)
    else:
        adopted(url, variation.at)
        execute(url, f"DROP TABLE {VERSIONS}")
    if variation.script:
        execute(url, variation.script)


def compared(url: str, schema: str = "commandbus") -> Adoption:
    """Compare, and hold that nothing was changed."""
    engine = create_engine(async_url(url))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            path = connection.exec_driver_sql("SHOW search_path").scalar()
            found = compare(connection, schema)
            assert connection.exec_driver_sql("SHOW search_path").scalar() == path
    finally:
        engine.dispose()
    return found


def named(found: Adoption, name: str, kind: str) -> AdoptionObject:
    [only] = [each for each in found.objects if (each.name, each.kind) == (name, kind)]
    return only


def run_statements(url: str, found: Adoption, *, zone: str = "UTC") -> None:
    """Run what the report prints, as a person would: statement by statement, outside a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET TIME ZONE '{zone}'".encode())
        for statement in found.statements:
            connection.execute(statement.encode())


async def adopt_and_use(url: str, found: Adoption) -> None:
    """Stamp, upgrade, call every method, and compare again."""
    assert found.fits, found.as_text()
    assert found.revision is not None
    command.stamp(alembic_config(url), found.revision)
    command.upgrade(alembic_config(url), "head")
    engine = create_async_engine(async_url(url))
    await do_everything(engine)
    await engine.dispose()
    afterwards = compared(url)
    assert (afterwards.fits, afterwards.revision) == (True, HEAD), afterwards.as_text()
