"""Without a connection, a method is one statement and one round trip."""

import pytest
from sqlalchemy import text

from commandbus_process import (
    PostgresProcessRepository,
    StepAlreadyLoggedError,
)
from tests.support.operations import (
    ADVANCES,
    ADVANCES_WITH_SEVERAL,
    ALL,
    ENGINES,
    OPERATIONS,
    Repository,
    command,
    engine_of,
    given_process,
    made,
)
from tests.support.wire import wire_before


@pytest.mark.parametrize("name", ["as it comes", "REPEATABLE READ", "AUTOCOMMIT", "AUTOCOMMIT as an option"])
async def test_one_statement_and_one_round_trip_without_a_connection(
    application_url: str, plain: Repository, name: str, subtests: pytest.Subtests
) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(ENGINES[name], url) as engine:
        repository = PostgresProcessRepository(engine)
        for method, operation in ALL.items():
            with subtests.test(method):
                given = await given_process(plain)
                async with engine.connect():  # so that what is said when a connection is made is not counted
                    pass
                wire.round_trips.clear()
                await operation(repository, given, None)
                [tags] = wire.round_trips
                [tag] = tags
                assert tag.split()[0] in {"INSERT", "SELECT", "UPDATE"}


async def test_one_statement_and_one_round_trip_on_the_callers_connection(
    application_url: str, plain: Repository, subtests: pytest.Subtests
) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(made(), url) as engine:
        repository = PostgresProcessRepository(engine)
        for name, operation in {**OPERATIONS, **ADVANCES}.items():
            with subtests.test(name):
                given = await given_process(plain)
                async with engine.connect() as conn:
                    await conn.execute(text("SELECT"))
                    wire.round_trips.clear()
                    await operation(repository, given, conn)
                    [tags] = wire.round_trips
                    [tag] = tags
                    assert tag.split()[0] in {"INSERT", "SELECT", "UPDATE"}


async def test_several_commands_on_the_callers_connection_cost_a_savepoint(
    application_url: str, plain: Repository, subtests: pytest.Subtests
) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(made(), url) as engine:
        repository = PostgresProcessRepository(engine)
        for name, operation in ADVANCES_WITH_SEVERAL.items():
            with subtests.test(name):
                given = await given_process(plain)
                async with engine.connect() as conn:
                    await conn.execute(text("SELECT"))
                    wire.round_trips.clear()
                    await operation(repository, given, conn)
                    assert wire.round_trips == [["SAVEPOINT"], ["SELECT 1"], ["RELEASE"]]


async def test_a_callers_connection_in_autocommit_needs_no_savepoint(
    application_url: str, plain: Repository, subtests: pytest.Subtests
) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(ENGINES["AUTOCOMMIT"], url) as engine:
        repository = PostgresProcessRepository(engine)
        for name, operation in ALL.items():
            with subtests.test(name):
                given = await given_process(plain)
                async with engine.connect() as conn:
                    wire.round_trips.clear()
                    await operation(repository, given, conn)
                    assert [len(tags) for tags in wire.round_trips] == [1]
                    with pytest.raises(StepAlreadyLoggedError):
                        await repository.advance(given.process, conn, sent=[command(), given.asked])


async def test_a_serializable_engine_has_its_transaction(application_url: str, plain: Repository) -> None:
    async with wire_before(application_url) as (wire, url), engine_of(ENGINES["SERIALIZABLE"], url) as engine:
        repository = PostgresProcessRepository(engine)
        given = await given_process(plain)
        async with engine.connect():
            pass
        wire.round_trips.clear()
        await repository.get_by_id(*given.key)
        assert wire.round_trips == [["BEGIN"], ["SELECT 1"], ["COMMIT"]]
