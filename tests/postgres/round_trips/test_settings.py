"""What the engine's owner has set is in force."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    PostgresProcessRepository,
    ProcessStatus,
    ReadOnlyServerError,
)
from tests.support.operations import (
    ADVANCES,
    ADVANCES_WITH_SEVERAL,
    ENGINES,
    OPERATIONS,
    READING,
    WRITING,
    Maker,
    Repository,
    engine_of,
    given_process,
    made,
    made_with_options,
    shown,
    watched,
)
from tests.support.triggers import trigger


@pytest.mark.parametrize(
    ("maker", "setting", "value"),
    [
        (ENGINES["SERIALIZABLE"], "transaction_isolation", "serializable"),
        (made_with_options(isolation_level="SERIALIZABLE"), "transaction_isolation", "serializable"),
        (made_with_options(postgresql_readonly=True), "transaction_read_only", "on"),
        (made_with_options(postgresql_deferrable=True), "transaction_deferrable", "on"),
    ],
)
async def test_what_the_engines_owner_has_set_for_its_transactions_is_in_force(
    application_url: str, plain: Repository, maker: Maker, setting: str, value: str
) -> None:
    async with engine_of(maker, application_url) as engine:
        repository, seen, given = PostgresProcessRepository(engine), shown(engine, setting), await given_process(plain)
        for operation in READING.values() if setting == "transaction_read_only" else OPERATIONS.values():
            await operation(repository, given, None)
            assert seen == [value]
            seen.clear()


async def test_a_read_only_engine_writes_nothing(
    application_url: str, plain: Repository, subtests: pytest.Subtests
) -> None:
    given = await given_process(plain)
    async with engine_of(made_with_options(postgresql_readonly=True), application_url) as engine:
        pool, repository = watched(engine), PostgresProcessRepository(engine)
        for name, operation in {**WRITING, **ADVANCES, **ADVANCES_WITH_SEVERAL}.items():
            with subtests.test(name):
                with pytest.raises(ReadOnlyServerError):
                    await operation(repository, given, None)
                pool.assert_as_it_came(times=1)
    assert await plain.find_by_status(given.process.domain, list(ProcessStatus)) == [given.process]
    assert await plain.get_audit_trail(*given.key) == [given.asked, given.asked_too]


async def test_what_is_set_when_a_transaction_begins_is_in_force(
    application_url: str, plain: Repository, subtests: pytest.Subtests
) -> None:
    def set_tenant(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL application.tenant = 'seven'")

    async with engine_of(made(), application_url) as engine:
        pool, repository, seen = watched(engine), PostgresProcessRepository(engine), shown(engine, "application.tenant")
        event.listen(engine.sync_engine, "begin", set_tenant)
        given = await given_process(plain)
        for name, operation in OPERATIONS.items():
            with subtests.test(name):
                await operation(repository, given, None)
                assert seen == ["seven"]
                seen.clear()
                pool.assert_as_it_came(times=1)
    assert len(await plain.get_audit_trail(*given.key)) == 4
    assert given.process == await plain.get_by_id(*given.key)


@pytest.mark.parametrize("moment", ["connect", "checkout"])
@pytest.mark.parametrize("committed", [True, False])
async def test_what_is_set_when_a_connection_is_made_or_borrowed_is_in_force(
    application_url: str, plain: Repository, moment: str, subtests: pytest.Subtests, *, committed: bool
) -> None:
    """Also if the listener leaves a transaction open: the statement is in it, and committed with it."""

    def set_tenant(adapted: Any, *_: object) -> None:
        cursor = adapted.cursor()
        cursor.execute("SET application.tenant = 'seven'")
        cursor.close()
        if committed:
            adapted.commit()

    async with engine_of(made(), application_url) as engine:
        event.listen(engine.sync_engine.pool, moment, set_tenant)
        pool, repository, seen = watched(engine), PostgresProcessRepository(engine), shown(engine, "application.tenant")
        given = await given_process(plain)
        for name, operation in OPERATIONS.items():
            with subtests.test(name):
                await operation(repository, given, None)
                assert seen == ["seven"]
                seen.clear()
                [(autocommit, *_, status)] = pool.returned
                assert (autocommit, status) == (False, TransactionStatus.IDLE)
                pool.returned.clear()
    assert len(await plain.get_audit_trail(*given.key)) == 4
    assert given.process == await plain.get_by_id(*given.key)


REFUSED_AT_COMMIT: dict[str, str] = {
    "save": "INSERT ON commandbus.process",
    "update": "UPDATE ON commandbus.process",
    "log_step": "INSERT ON commandbus.process_audit",
    "update_step_reply": "UPDATE ON commandbus.process_audit",
    "advance": "UPDATE ON commandbus.process",
    "advance, its command": "INSERT ON commandbus.process_audit",
    "advance, its reply": "UPDATE ON commandbus.process_audit",
}


@asynccontextmanager
async def refused_at_commit(administrator: AsyncEngine, on: str) -> AsyncGenerator[None]:
    async with administrator.begin() as connection:
        await connection.exec_driver_sql(trigger(f"AFTER {on}", "RAISE 'too late';", name="refuse"))
    try:
        yield
    finally:
        async with administrator.begin() as connection:
            await connection.execute(text("DROP FUNCTION public.refuse CASCADE"))


@pytest.mark.parametrize("name", ["as it comes", "SERIALIZABLE", "AUTOCOMMIT"])
async def test_what_is_refused_at_commit_is_an_error_and_not_kept(
    application_url: str, administrator: AsyncEngine, plain: Repository, name: str, subtests: pytest.Subtests
) -> None:
    async with engine_of(ENGINES[name], application_url) as engine:
        pool, repository, given = watched(engine), PostgresProcessRepository(engine), await given_process(plain)
        before = given.process.model_copy(deep=True)
        for what, on in REFUSED_AT_COMMIT.items():
            with subtests.test(what):
                async with refused_at_commit(administrator, on):
                    with pytest.raises(DBAPIError, match="too late"):
                        await WRITING[what.partition(",")[0]](repository, given, None)
                pool.assert_as_it_came(times=1)
                assert given.process == before
                assert await plain.find_by_status(before.domain, list(ProcessStatus)) == [before]
                assert await plain.get_audit_trail(*given.key) == [given.asked, given.asked_too]
