"""What is no engine of psycopg's is refused when the repository is made, with what to pass instead."""

from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from commandbus_process import JsonObject, PostgresProcessRepository, run_in_transaction

URL = "postgresql+psycopg://me:secret@localhost/none"
ENGINE = create_async_engine(URL)


def engine_of_another_driver() -> AsyncEngine:
    """A real SQLAlchemy engine for asyncpg, which need not be installed."""
    asyncpg = ModuleType("asyncpg")
    asyncpg.paramstyle = "numeric_dollar"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return create_async_engine("postgresql+asyncpg://me:secret@localhost/none", module=asyncpg)


ENGINES: dict[str, tuple[Any, str]] = {
    "a synchronous engine": (create_engine(URL), "not Engine; create_async_engine"),
    "another driver": (
        engine_of_another_driver(),
        "engine must have the driver psycopg, not asyncpg .postgresql.; make",
    ),
    "a URL": (make_url(URL), "not URL; make one with create_async_engine.url."),
    "a URL as text": (URL, "not str; make one with create_async_engine.url."),
    "a connection": (ENGINE.connect(), "not AsyncConnection; pass its engine, conn.engine, here"),
    "a session": (AsyncSession(ENGINE), "not AsyncSession; pass the engine that the session was made with"),
    "a sessionmaker": (async_sessionmaker(ENGINE), "not async_sessionmaker; make one"),
    "nothing": (None, "not NoneType; make one"),
    "the class": (AsyncEngine, "not type; make one"),
}


@pytest.mark.parametrize(("engine", "told"), ENGINES.values(), ids=ENGINES)
async def test_what_is_no_engine(engine: Any, told: str) -> None:
    async def work(_conn: object) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match=told) as made:
        PostgresProcessRepository[JsonObject](engine)
    with pytest.raises(TypeError, match=told) as run:
        await run_in_transaction(engine, work)
    for error in (made, run):
        assert "secret" not in str(error.value)


def test_what_is_one() -> None:
    for engine in (
        ENGINE,
        ENGINE.execution_options(isolation_level="SERIALIZABLE"),
        create_async_engine(URL.replace("+psycopg", "+psycopg_async")),
    ):
        PostgresProcessRepository(engine)


async def test_a_connection_of_another_driver_is_refused_too() -> None:
    repository = PostgresProcessRepository(ENGINE)
    conn = engine_of_another_driver().connect()
    with pytest.raises(TypeError, match="conn must have the driver psycopg, not asyncpg"):
        await repository.get_audit_trail("orders", uuid4(), conn)
