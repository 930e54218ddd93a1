"""`run_in_transaction`: the caller's transaction, run again after a lost race, and given back as it came."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    DeadlockError,
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessLockedError,
    ProcessMetadata,
    ProcessNotFoundError,
    TransactionConflictError,
    run_in_transaction,
)
from tests.support.databases import async_url, execute
from tests.support.items import DOMAIN, new_process

Repository = PostgresProcessRepository[JsonObject]

FAILING = "DO $$ BEGIN RAISE 'lost' USING ERRCODE = '{}'; END $$"
"""A statement of the host's that ends in the given SQLSTATE, as it can under load."""


@pytest.fixture(scope="module", autouse=True)
def _accounts(shared_url: str) -> None:
    """Give the host a table of its own."""
    execute(shared_url, "CREATE TABLE account (id text PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0))")


@pytest.fixture
async def engine(shared_url: str) -> AsyncIterator[AsyncEngine]:
    execute(shared_url, "TRUNCATE account")
    engine = create_async_engine(async_url(shared_url))
    yield engine
    await engine.dispose()


@pytest.fixture
def repository(engine: AsyncEngine) -> Repository:
    return PostgresProcessRepository(engine)


async def deposit(conn: AsyncConnection, name: str = "a") -> None:
    await conn.execute(text("INSERT INTO account VALUES (:id, 0)"), {"id": name})


async def accounts(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as conn:
        return list((await conn.execute(text("SELECT id FROM account ORDER BY id"))).scalars())


async def count_up(repository: Repository, process: ProcessMetadata, conn: AsyncConnection) -> int:
    found = await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert found is not None
    count = found.state.get("count", 0)
    assert isinstance(count, int)
    found.state["count"] = count + 1
    await repository.update(found, conn)
    return count + 1


async def test_what_work_returns_and_what_it_did(engine: AsyncEngine, repository: Repository) -> None:
    process = new_process()

    async def work(conn: AsyncConnection) -> str:
        await repository.save(process, conn)
        await deposit(conn)
        assert conn.in_transaction()
        return "done"

    assert await run_in_transaction(engine, work) == "done"
    assert await accounts(engine) == ["a"]
    assert await repository.get_by_id(DOMAIN, process.process_id) == process


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_no_update_is_lost_and_no_worker_writes_a_loop(shared_url: str, level: str) -> None:
    engine = create_async_engine(async_url(shared_url), isolation_level=level)
    repository, process = Repository(engine), new_process()
    await repository.save(process)

    async def worker() -> None:
        for _ in range(5):
            await run_in_transaction(engine, lambda conn: count_up(repository, process, conn), attempts=100)

    try:
        async with asyncio.timeout(120):
            await asyncio.gather(*(worker() for _ in range(8)))
        found = await repository.get_by_id(DOMAIN, process.process_id)
    finally:
        await engine.dispose()
    assert found is not None
    assert found.state["count"] == 40


async def test_an_error_of_ours_that_is_retryable(engine: AsyncEngine, repository: Repository) -> None:
    process, calls = new_process(), 0
    await repository.save(process)

    async def work(conn: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        await deposit(conn)
        found = await repository.get_by_id(DOMAIN, process.process_id, conn)
        assert found is not None
        if calls == 1:
            await repository.update(process)  # another worker is first
        await repository.update(found, conn)

    await run_in_transaction(engine, work)
    assert calls == 2
    assert await accounts(engine) == ["a"]  # else it would be there twice, which its key refuses


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_statement_that_the_caller_runs(engine: AsyncEngine, sqlstate: str) -> None:
    calls = 0

    async def work(conn: AsyncConnection) -> int:
        nonlocal calls
        calls += 1
        await deposit(conn)
        if calls < 3:
            await conn.execute(text(FAILING.format(sqlstate)))
        return calls

    assert await run_in_transaction(engine, work, attempts=3) == 3
    assert await accounts(engine) == ["a"]


async def test_the_commit_is_what_fails(shared_url: str) -> None:
    """Two transactions read both accounts and write one each: under SERIALIZABLE the second COMMIT is refused."""
    engine = create_async_engine(async_url(shared_url), isolation_level="SERIALIZABLE")
    calls = 0

    async def write(conn: AsyncConnection, name: str) -> None:
        await conn.execute(text("SELECT count(*) FROM account"))
        await deposit(conn, name)

    async def work(conn: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        await write(conn, "mine")
        if calls == 1:
            async with engine.begin() as other:
                await write(other, "other")

    execute(shared_url, "TRUNCATE account")
    try:
        await run_in_transaction(engine, work)
        assert calls == 2
        assert await accounts(engine) == ["mine", "other"]
        calls = 0
        execute(shared_url, "TRUNCATE account")
        with pytest.raises(TransactionConflictError) as caught:
            await run_in_transaction(engine, work, attempts=1)
        assert caught.value.sqlstate == "40001"
        assert isinstance(caught.value.__cause__, DBAPIError)
        assert await accounts(engine) == ["other"]
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [("40001", TransactionConflictError), ("40P01", DeadlockError)],
    ids=str,
)
async def test_the_last_error_is_raised_by_the_library(
    engine: AsyncEngine, sqlstate: str, expected: type[TransactionConflictError]
) -> None:
    calls = 0

    async def work(conn: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        await conn.execute(text(FAILING.format(sqlstate)))

    with pytest.raises(TransactionConflictError) as caught:
        await run_in_transaction(engine, work, attempts=2)
    assert calls == 2
    assert type(caught.value) is expected
    assert caught.value.sqlstate == sqlstate
    assert isinstance(caught.value.__cause__, DBAPIError)


async def test_the_last_error_of_the_library_is_raised_as_it_is(engine: AsyncEngine) -> None:
    errors = [ConcurrentUpdateError(DOMAIN, uuid4(), 1, 2), ProcessLockedError()]

    async def work(_conn: AsyncConnection) -> None:
        raise errors[len(seen)]

    seen: list[object] = []
    event.listen(engine.sync_engine, "rollback", seen.append)
    with pytest.raises(ProcessLockedError) as caught:
        await run_in_transaction(engine, work, attempts=2)
    assert caught.value is errors[1]
    assert len(seen) == 2


class HostError(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        HostError(),
        ProcessNotFoundError(DOMAIN, uuid4()),
        InvalidInputError("x", "y"),
        asyncio.CancelledError(),
        SystemExit(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_any_other_error_rolls_back_and_passes(engine: AsyncEngine, error: BaseException) -> None:
    calls = 0

    async def work(conn: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        await deposit(conn)
        raise error

    with pytest.raises(type(error)) as caught:
        await run_in_transaction(engine, work)
    assert caught.value is error
    assert calls == 1
    assert await accounts(engine) == []


async def test_an_error_of_the_database_that_is_no_lost_race_passes(engine: AsyncEngine) -> None:
    async def overdraw(conn: AsyncConnection) -> None:
        await deposit(conn)
        await conn.execute(text("UPDATE account SET balance = -1"))

    async def wait_for_a_lock(conn: AsyncConnection) -> None:
        await conn.execute(text("SET LOCAL lock_timeout = '10ms'"))
        await deposit(conn)

    with pytest.raises(IntegrityError):
        await run_in_transaction(engine, overdraw)
    async with engine.begin() as holder:
        await holder.execute(text("LOCK TABLE account"))
        with pytest.raises(OperationalError):  # no process: it is for the caller to say what it was
            await run_in_transaction(engine, wait_for_a_lock)
    assert await accounts(engine) == []


async def test_a_cancellation_from_outside(engine: AsyncEngine) -> None:
    begun = asyncio.Event()

    async def work(conn: AsyncConnection) -> None:
        await deposit(conn)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(run_in_transaction(engine, work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await accounts(engine) == []


async def test_a_group_of_errors_is_a_lost_race_if_all_of_them_are(engine: AsyncEngine) -> None:
    """As a TaskGroup in `work` raises them."""
    locked, missing = ProcessLockedError(), ProcessNotFoundError(DOMAIN, uuid4())
    groups = [ExceptionGroup("", [locked, ExceptionGroup("", [locked])]), ExceptionGroup("", [locked, missing])]
    calls = 0

    async def work(_conn: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        raise groups[calls - 1]

    with pytest.raises(ExceptionGroup) as caught:
        await run_in_transaction(engine, work)
    assert caught.value is groups[1]
    calls = 0
    with pytest.raises(ProcessLockedError) as last:
        await run_in_transaction(engine, work, attempts=1)
    assert last.value is locked
    assert last.value.__cause__ is groups[0]


Maker = Callable[[str], AsyncEngine]
IN_AUTOCOMMIT: dict[str, Maker] = {
    "isolation_level": lambda url: create_async_engine(url, isolation_level="AUTOCOMMIT"),
    "option": lambda url: create_async_engine(url).execution_options(isolation_level="AUTOCOMMIT"),
    "connect_args": lambda url: create_async_engine(url, connect_args={"autocommit": True}),
}


@pytest.mark.parametrize("how", IN_AUTOCOMMIT)
@pytest.mark.parametrize("ending", ["commit", "error", "commit fails"])
async def test_an_engine_in_autocommit_gives_a_transaction_and_gets_its_connection_back(
    shared_url: str, how: str, ending: str
) -> None:
    execute(shared_url, "TRUNCATE account")
    engine = IN_AUTOCOMMIT[how](async_url(shared_url))

    def refuse(_connection: object) -> None:
        raise HostError

    async def work(conn: AsyncConnection) -> None:
        await deposit(conn, "one")
        await deposit(conn, "two")
        if ending == "error":
            raise HostError

    if ending == "commit fails":
        event.listen(engine.sync_engine, "commit", refuse)
    try:
        if ending == "commit":
            await run_in_transaction(engine, work)
        else:
            with pytest.raises(HostError):
                await run_in_transaction(engine, work)
        if ending == "commit fails":
            event.remove(engine.sync_engine, "commit", refuse)
        assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        async with engine.connect() as conn:
            raw = await conn.get_raw_connection()
            assert getattr(raw.driver_connection, "autocommit", None) is True
            await deposit(conn, "the host's next")
            await conn.rollback()
        expected = ["one", "the host's next", "two"] if ending == "commit" else ["the host's next"]
        assert await accounts(engine) == expected
    finally:
        await engine.dispose()


async def test_work_that_caught_the_error_that_aborted_its_transaction(engine: AsyncEngine) -> None:
    """PostgreSQL answers such a COMMIT with a ROLLBACK, and no error: it would look as if it had been done."""

    async def work(conn: AsyncConnection) -> None:
        await deposit(conn)
        with pytest.raises(IntegrityError):
            await conn.execute(text("UPDATE account SET balance = -1"))

    with pytest.raises(InvalidInputError, match="work: caught an error that aborted the transaction"):
        await run_in_transaction(engine, work)
    assert await accounts(engine) == []


async def test_work_may_catch_what_its_own_savepoint_undid(engine: AsyncEngine) -> None:
    async def work(conn: AsyncConnection) -> None:
        await deposit(conn)
        with pytest.raises(IntegrityError):
            async with conn.begin_nested():
                await conn.execute(text("UPDATE account SET balance = -1"))

    await run_in_transaction(engine, work)
    assert await accounts(engine) == ["a"]


@pytest.mark.parametrize("how", ["commit", "rollback", "close"])
async def test_work_that_ends_its_transaction_itself(engine: AsyncEngine, how: str) -> None:
    async def work(conn: AsyncConnection) -> None:
        await deposit(conn)
        await getattr(conn, how)()

    with pytest.raises(InvalidInputError, match="work: ended the transaction"):
        await run_in_transaction(engine, work)
    assert await accounts(engine) == (["a"] if how == "commit" else [])


async def work_of_a_host(_conn: AsyncConnection) -> None:
    """Is never called."""
    raise AssertionError


async def test_wrong_arguments(engine: AsyncEngine) -> None:
    run: Any = run_in_transaction
    sync_engine = create_engine(engine.url)
    with pytest.raises(TypeError, match=r"engine must be an AsyncEngine, not Engine; create_async_engine\(...\)"):
        await run(sync_engine, work_of_a_host)
    with pytest.raises(TypeError, match="work must be a function that takes the connection, not NoneType"):
        await run(engine, None)
    coroutine = work_of_a_host(engine.connect())
    with pytest.raises(TypeError, match="not coroutine"):
        await run(engine, coroutine)
    coroutine.close()
    for attempts in (0, -1, 1.5, "5", None):
        with pytest.raises(InvalidInputError, match="attempts: "):
            await run(engine, work_of_a_host, attempts=attempts)


async def test_nothing_refers_to_the_caller_after_an_error(engine: AsyncEngine) -> None:
    """Without the garbage collector: an error in a cycle would keep the frames of all its callers."""

    class Big:
        pass

    async def caller(sqlstate: str) -> weakref.ref[Big]:
        big = Big()

        async def work(conn: AsyncConnection) -> None:
            assert big is not None
            await conn.execute(text(FAILING.format(sqlstate)))

        with pytest.raises(TransactionConflictError):
            await run_in_transaction(engine, work, attempts=2)
        return weakref.ref(big)

    await caller("40001")
    gc.collect()
    gc.disable()
    try:
        for sqlstate in ("40001", "40P01"):
            assert (await caller(sqlstate))() is None
    finally:
        gc.enable()
