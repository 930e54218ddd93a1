"""Tables that are missing or old: the error says what to run, and quotes nothing that was to be written."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from commandbus_process import (
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessFilter,
    ProcessRetention,
    ProcessStatus,
    SchemaTooOldError,
)
from commandbus_process.tables import REVISION
from tests.support.databases import async_url, execute
from tests.support.items import DOMAIN, NOON, for_process, new_entry, new_process
from tests.support.schema import adopted

HIDDEN = "a-state-that-must-not-be-quoted"
Call = Callable[[Any, AsyncConnection | None], Awaitable[object]]


async def purge(engine: Any, _: AsyncConnection | None) -> None:
    async for _progress in ProcessRetention(engine).purge(DOMAIN, ended_before=NOON):
        pass


async def stream(engine: Any, conn: AsyncConnection | None) -> None:
    wanted = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.PENDING])
    async with PostgresProcessQueries(engine).stream(wanted, conn, consistent=True):
        pass


def secret_process() -> Any:
    return new_process().model_copy(update={"state": {"token": HIDDEN}})


CALLS: dict[str, Call] = {
    "save": lambda engine, conn: PostgresProcessRepository(engine).save(secret_process(), conn),
    "save_many": lambda engine, conn: PostgresProcessRepository(engine).save_many([secret_process()], conn),
    "log_step": lambda engine, conn: PostgresProcessRepository(engine).log_step(
        DOMAIN, new_process().process_id, new_entry(command_data={"token": HIDDEN}), conn
    ),
    "log_many": lambda engine, conn: PostgresProcessRepository(engine).log_many(
        for_process(DOMAIN, new_process().process_id, [new_entry(command_data={"token": HIDDEN})]), conn
    ),
    "get_by_id": lambda engine, conn: PostgresProcessRepository(engine).get_by_id(
        DOMAIN, new_process().process_id, conn
    ),
    "find_by_status": lambda engine, conn: PostgresProcessRepository(engine).find_by_status(
        DOMAIN, [ProcessStatus.PENDING], conn
    ),
    "count": lambda engine, conn: PostgresProcessQueries(engine).count(
        ProcessFilter(domain=DOMAIN, business_key="7"), conn
    ),
    "erase": lambda engine, conn: ProcessRetention(engine).erase(DOMAIN, new_process().process_id, conn),
    "stream": stream,
    "purge": purge,
}


@pytest.mark.parametrize("on_connection", [False, True], ids=["alone", "on a connection"])
@pytest.mark.parametrize("call", CALLS)
async def test_tables_that_are_missing(call: str, empty_database_url: str, on_connection: bool) -> None:  # noqa: FBT001
    await fails(call, empty_database_url, on_connection=on_connection)


@pytest.mark.parametrize("call", ["save", "save_many", "log_step", "log_many", "get_by_id", "count"])
async def test_tables_that_are_old(call: str, empty_database_url: str) -> None:
    adopted(empty_database_url, "commandbus_0002")
    await fails(call, empty_database_url, on_connection=False)
    await fails(call, empty_database_url, on_connection=True)


async def fails(call: str, url: str, *, on_connection: bool) -> None:
    engine = create_async_engine(async_url(url))
    try:
        async with engine.connect() as conn:
            with pytest.raises(SchemaTooOldError) as caught:
                await CALLS[call](engine, conn if on_connection else None)
    finally:
        await engine.dispose()
    error = caught.value
    assert error.wanted == REVISION
    assert error.missing is not None
    assert "does not exist" in error.missing
    assert "python -m commandbus_process.migrations upgrade" in str(error)
    seen: BaseException | None = error
    while seen is not None:
        assert HIDDEN not in f"{seen!r} {seen}"
        seen = seen.__cause__ or seen.__context__


@pytest.mark.own_database
async def test_what_a_trigger_of_somebody_else_lacks_is_not_blamed_on_the_schema(database_url: str) -> None:
    execute(
        database_url,
        "CREATE FUNCTION public.broken() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO nowhere VALUES (1); RETURN NEW; END $$; "
        "CREATE TRIGGER broken BEFORE INSERT ON commandbus.process FOR EACH ROW EXECUTE FUNCTION public.broken()",
    )
    engine = create_async_engine(async_url(database_url))
    try:
        with pytest.raises(ProgrammingError, match="nowhere"):
            await PostgresProcessRepository(engine).save(new_process())
    finally:
        await engine.dispose()
