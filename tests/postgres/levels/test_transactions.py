"""Whose transaction it is: the caller's is left alone, also by errors, and a method without one is atomic."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    NothingWrittenError,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessFilter,
    ProcessLockedError,
    ProcessMetadata,
    ProcessNotEndedError,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ProcessStatus,
    ReadOnlyServerError,
    ReplyConflictError,
    ReplyOutcome,
    SchemaError,
    StateTooNewError,
    StepAlreadyLoggedError,
    StepNotFoundError,
    StepReply,
    StoredDataError,
    StoredStateError,
    TransactionConflictError,
    UnindexedFilterError,
)
from commandbus_process.tables import process_audit
from tests.support.databases import Server, write_unchecked
from tests.support.failed_statements import failed_statements
from tests.support.items import DOMAIN, new_process
from tests.support.triggers import trigger

Repository = PostgresProcessRepository


@dataclass
class Case:
    """A process with one replied step, in the database, and what is needed to break every promise about it."""

    repository: Repository
    administrator: AsyncEngine
    process: ProcessMetadata
    entry: ProcessAuditEntry
    of_newer_software: UUID
    of_newer_state: UUID

    def other(self, **changes: object) -> ProcessMetadata:
        return self.process.model_copy(deep=True, update=changes)

    def other_entry(self, **changes: object) -> ProcessAuditEntry:
        return self.entry.model_copy(update=changes)


@pytest.fixture
async def case(repository: Repository, administrator: AsyncEngine, process: ProcessMetadata, database_url: str) -> Case:
    of_newer_software, of_newer_state = uuid4(), uuid4()
    write_unchecked(
        database_url,
        "INSERT INTO commandbus.process (domain, process_id, process_type, status, state_version) VALUES "
        f"('{DOMAIN}', '{of_newer_software}', 'order', 'PAUSED', NULL), "
        f"('{DOMAIN}', '{of_newer_state}', 'order', 'PENDING', 9)",
    )
    await repository.save(process)
    await repository.update(process)
    entry = ProcessAuditEntry(
        step_name="reserve", command_id=uuid4(), command_type="ReserveStock", reply_outcome=ReplyOutcome.SUCCESS
    )
    await repository.log_step(DOMAIN, process.process_id, entry)
    return Case(repository, administrator, process, entry, of_newer_software, of_newer_state)


Attempt = Callable[[Case, AsyncConnection], Awaitable[object]]

NOBODYS = uuid4()
ATTEMPTS: dict[type[ProcessRepositoryError], Attempt] = {
    ProcessAlreadyExistsError: lambda case, conn: case.repository.save(case.other(), conn),
    ConcurrentUpdateError: lambda case, conn: case.repository.update(case.other(version=1), conn),
    ProcessNotFoundError: lambda case, conn: case.repository.log_step(DOMAIN, uuid4(), case.entry, conn),
    StepNotFoundError: lambda case, conn: case.repository.update_step_reply(
        DOMAIN, case.process.process_id, NOBODYS, StepReply(NOBODYS, ReplyOutcome.SUCCESS), conn
    ),
    StepAlreadyLoggedError: lambda case, conn: case.repository.log_step(
        DOMAIN, case.process.process_id, case.other_entry(step_name="other"), conn
    ),
    ReplyConflictError: lambda case, conn: case.repository.update_step_reply(
        DOMAIN,
        case.process.process_id,
        case.entry.command_id,
        case.other_entry(reply_outcome=ReplyOutcome.FAILED),
        conn,
    ),
    InvalidInputError: lambda case, conn: case.repository.update(case.other(state={"total": float("nan")}), conn),
    UnindexedFilterError: lambda case, conn: PostgresProcessQueries(case.administrator).page(
        ProcessFilter(domain=DOMAIN, process_type="order"), conn
    ),
    StoredStateError: lambda case, conn: Repository(case.administrator, state_type=dict[str, int]).get_by_id(
        DOMAIN, case.process.process_id, conn
    ),
    StoredDataError: lambda case, conn: read_newer_status(case, conn),  # noqa: PLW0108 - it is defined below
    StateTooNewError: lambda case, conn: read_newer_state(case, conn),  # noqa: PLW0108
    ProcessLockedError: lambda case, conn: read_a_locked_process(case, conn),  # noqa: PLW0108
    NothingWrittenError: lambda case, conn: log_where_a_trigger_forbids_it(case, conn),  # noqa: PLW0108
}


async def read_newer_status(case: Case, conn: AsyncConnection) -> None:
    await case.repository.get_by_id(DOMAIN, case.of_newer_software, conn)


async def read_newer_state(case: Case, conn: AsyncConnection) -> None:
    await case.repository.get_by_id(DOMAIN, case.of_newer_state, conn)


async def read_a_locked_process(case: Case, conn: AsyncConnection) -> None:
    async with case.administrator.begin() as other:
        await case.repository.get_by_id(DOMAIN, case.process.process_id, other, for_update=True)
        await case.repository.get_by_id(DOMAIN, case.process.process_id, conn, for_update="nowait")


async def log_where_a_trigger_forbids_it(case: Case, conn: AsyncConnection) -> None:
    async with case.administrator.begin() as other:
        await other.exec_driver_sql(trigger("BEFORE INSERT ON commandbus.process_audit"))
    await case.repository.log_step(DOMAIN, case.process.process_id, case.other_entry(command_id=uuid4()), conn)


def subclasses(error: type[ProcessRepositoryError]) -> set[type[ProcessRepositoryError]]:
    return {error}.union(*(subclasses(each) for each in error.__subclasses__()))


def test_every_error_that_leaves_the_transaction_alive_is_attempted_below() -> None:
    bases = {ProcessRepositoryError, *(error.__base__ for error in ATTEMPTS)} - {StoredDataError, InvalidInputError}
    aborted_by_the_server = {ReadOnlyServerError, *subclasses(TransactionConflictError)}
    # In tests/postgres/retention and tests/postgres/schema
    elsewhere = {ProcessNotEndedError, *subclasses(SchemaError)}
    assert subclasses(ProcessRepositoryError) - bases - aborted_by_the_server - elsewhere == set(ATTEMPTS)


@pytest.mark.own_database
@pytest.mark.parametrize("error", ATTEMPTS, ids=lambda error: error.__name__)
async def test_an_error_leaves_the_callers_transaction_alive(
    error: type[ProcessRepositoryError], case: Case, engine: AsyncEngine
) -> None:
    before, after = new_process(), new_process()
    failed = failed_statements(engine)
    async with engine.begin() as conn:
        await case.repository.save(before, conn)
        with pytest.raises(error) as caught:
            await ATTEMPTS[error](case, conn)
        assert type(caught.value) is error
        assert conn.in_transaction()
        await case.repository.save(after, conn)
    assert failed == []
    for process in (before, after):
        assert await case.repository.get_by_id(DOMAIN, process.process_id) == process
    assert await case.repository.get_by_id(DOMAIN, case.process.process_id) == case.process
    assert await case.repository.get_audit_trail(DOMAIN, case.process.process_id) != []


async def everything(case: Case, conn: AsyncConnection) -> ProcessMetadata:
    """Call all eight methods on a connection; returns the process that this made."""
    repository, process = case.repository, new_process()
    sent = ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="ChargeCard")
    await repository.save(process, conn)
    process.status = ProcessStatus.COMPLETED
    await repository.update(process, conn)
    await repository.log_step(DOMAIN, process.process_id, sent, conn)
    answer = sent.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS})
    await repository.update_step_reply(DOMAIN, process.process_id, sent.command_id, answer, conn)
    assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process
    assert await repository.find_by_status(DOMAIN, [ProcessStatus.COMPLETED], conn) == [process]
    assert len(await repository.get_audit_trail(DOMAIN, process.process_id, conn)) == 1
    assert await repository.get_completed_steps(DOMAIN, process.process_id, conn) == ["charge"]
    return process


async def test_what_the_caller_rolls_back_is_gone(case: Case, engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        process = await everything(case, conn)
        assert conn.in_transaction()
        assert not conn.closed
        await conn.rollback()
    assert await case.repository.get_by_id(DOMAIN, process.process_id) is None
    async with engine.connect() as conn:
        assert len((await conn.execute(select(process_audit.c.id))).all()) == 1


def note(seen: list[str], name: str) -> Callable[..., None]:
    return lambda *_: seen.append(name)


async def test_nothing_is_begun_committed_or_rolled_back_on_the_callers_connection(
    case: Case, engine: AsyncEngine
) -> None:
    seen: list[str] = []
    for name in ("begin", "commit", "rollback", "savepoint", "release_savepoint", "rollback_savepoint"):
        event.listen(engine.sync_engine, name, note(seen, name))
    async with engine.connect() as conn:
        await conn.begin()
        await everything(case, conn)
        assert seen == ["begin"]  # the test's own
        await conn.commit()
    assert seen == ["begin", "commit"]


async def test_the_callers_savepoint_undoes_what_was_done_since(case: Case, engine: AsyncEngine) -> None:
    kept, undone = new_process(), new_process()
    async with engine.begin() as conn:
        await case.repository.save(kept, conn)
        savepoint = await conn.begin_nested()
        await case.repository.save(undone, conn)
        await savepoint.rollback()
    assert await case.repository.get_by_id(DOMAIN, kept.process_id) == kept
    assert await case.repository.get_by_id(DOMAIN, undone.process_id) is None


@pytest.mark.own_database
async def test_one_transaction_with_the_applications_own_tables(
    case: Case, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    async with administrator.begin() as conn:
        await conn.execute(text("CREATE TABLE orders (id uuid PRIMARY KEY)"))
        await conn.execute(text("GRANT INSERT ON orders TO PUBLIC"))
    process = new_process()

    async def place_twice() -> None:
        async with engine.begin() as conn:
            await case.repository.save(process, conn)
            for _ in range(2):
                await conn.execute(text("INSERT INTO orders VALUES (:id)"), {"id": process.process_id})

    with pytest.raises(IntegrityError):
        await place_twice()
    assert await case.repository.get_by_id(DOMAIN, process.process_id) is None


async def test_the_transaction_of_a_session(case: Case, engine: AsyncEngine) -> None:
    process, undone = new_process(), new_process()
    async with AsyncSession(engine) as session, session.begin():
        await case.repository.save(process, await session.connection())
    async with AsyncSession(engine) as session:
        await case.repository.save(undone, await session.connection())
        await session.rollback()
    assert await case.repository.get_by_id(DOMAIN, process.process_id) == process
    assert await case.repository.get_by_id(DOMAIN, undone.process_id) is None


async def test_a_session_in_place_of_a_connection_is_refused_with_the_remedy(case: Case, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        with pytest.raises(TypeError, match=r"await session\.connection\(\)"):
            await case.repository.save(new_process(), session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_without_a_connection_nothing_stays_borrowed(case: Case, engine: AsyncEngine) -> None:
    borrowed: list[int] = []
    event.listen(engine.sync_engine, "checkout", lambda *_: borrowed.append(1))
    event.listen(engine.sync_engine, "checkin", lambda *_: borrowed.pop())
    await case.repository.update(case.process)
    with pytest.raises(ConcurrentUpdateError):
        await case.repository.update(case.other(version=1))
    assert borrowed == []


async def refuse_at_commit(administrator: AsyncConnection, what: str) -> None:
    """Add a constraint that is checked at COMMIT, and not met there."""
    await administrator.exec_driver_sql(trigger(f"AFTER {what} ON commandbus.process", "RAISE 'refused at commit';"))


@pytest.mark.own_database
async def test_an_object_whose_commit_failed_is_as_it_was_read(case: Case, administrator: AsyncEngine) -> None:
    async with administrator.begin() as conn:
        await refuse_at_commit(conn, "UPDATE")
    read = case.process.model_copy(deep=True)
    with pytest.raises(DBAPIError, match="refused at commit"):
        await case.repository.update(case.process)
    assert case.process == read


@pytest.mark.own_database
async def test_a_process_whose_insertion_was_refused_at_commit_has_no_version(
    case: Case, administrator: AsyncEngine
) -> None:
    async with administrator.begin() as conn:
        await refuse_at_commit(conn, "INSERT")
    process = new_process()
    with pytest.raises(DBAPIError, match="refused at commit"):
        await case.repository.save(process)
    assert process.version is None


@pytest.mark.own_database
async def test_errors_of_the_server_pass_through(case: Case, administrator: AsyncEngine, server: Server) -> None:
    async with administrator.begin() as conn:
        await conn.execute(text(f"REVOKE SELECT ON commandbus.process_audit FROM {server.application}"))
    with pytest.raises(DBAPIError, match="process_audit"):
        await case.repository.get_audit_trail(DOMAIN, case.process.process_id)
