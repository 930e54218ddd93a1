"""Many processes, or many steps, in one unit: what is stored, what is in the way, and that it is all or nothing."""

import asyncio
import gc
import pickle
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import JsonValue
from sqlalchemy import Table, Text, cast, delete, event, insert, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    NothingWrittenError,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessError,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessStatus,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StoredDataError,
    TransactionConflictError,
)
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit
from tests.conftest import DOMAIN, new_process
from tests.faults.test_cancellation import Cancelled, waiting_sessions
from tests.support.databases import execute, write_unchecked
from tests.support.items import (
    BATCH,
    NOON,
    Statements,
    Step,
    asynchronous,
    bad_entry,
    bad_process,
    for_process,
    given_as,
    new_entries,
    new_entry,
    new_processes,
    no_task_is_left,
    numbers,
    step_names,
)
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository
Connection = AsyncConnection | None


@pytest.fixture(params=["list", "generator", "async generator"])
def form(request: pytest.FixtureRequest) -> str:
    """What the items are given as."""
    return str(request.param)


@pytest.fixture
async def complaints() -> AsyncIterator[list[object]]:
    """What the event loop had to complain of: errors that nobody retrieved, tasks that nobody awaited."""
    loop = asyncio.get_running_loop()
    collected: list[object] = []
    previous = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: collected.append(context))
    gc.freeze()  # most complaints come when something is collected; so that looking for it there takes no time
    yield collected
    gc.unfreeze()
    loop.set_exception_handler(previous)


# What is stored.


async def test_many_processes_are_saved(repository: Repository, conn: Connection, form: str) -> None:
    processes = list(new_processes(3))
    before = [process.model_copy(deep=True) for process in processes]
    assert await repository.save_many(given_as(form, processes), conn) == 3
    for process, each in zip(processes, before, strict=True):
        assert process == each.model_copy(update={"version": 1})
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process


async def test_what_was_saved_in_bulk_can_be_updated(repository: Repository, conn: Connection) -> None:
    changed, unchanged = processes = list(new_processes(2))
    await repository.save_many(processes, conn)
    changed.state = {"total": 13}
    for process in processes:
        process.status = ProcessStatus.COMPLETED
        await repository.update(process, conn)
        assert process.version == 2
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process
    assert unchanged.state == new_process().state


async def test_many_steps_are_logged(
    repository: Repository, conn: Connection, process: ProcessMetadata, form: str
) -> None:
    replied = {"reply_outcome": ReplyOutcome.FAILED, "reply_data": {"code": 7}, "received_at": NOON + timedelta(days=1)}
    entries = [new_entry("reserve"), new_entry("charge", command_data=None, **replied), new_entry("pack")]
    await repository.save(process, conn)
    assert await repository.log_many(given_as(form, for_process(DOMAIN, process.process_id, entries)), conn) == 3
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == entries


async def test_steps_of_many_processes_are_logged(repository: Repository, conn: Connection, form: str) -> None:
    one, two = list(new_processes(2))
    elsewhere = one.model_copy(update={"domain": "refunds"})
    await repository.save_many([one, two, elsewhere], conn)
    entry, later = new_entry(), new_entry("charge")  # a command id is unique within a process only
    steps = [
        (two.domain, two.process_id, entry),
        (one.domain, one.process_id, later),
        (elsewhere.domain, elsewhere.process_id, entry),
        (one.domain, one.process_id, entry),
    ]
    assert await repository.log_many(given_as(form, steps), conn) == 4
    assert await repository.get_audit_trail(one.domain, one.process_id, conn) == [later, entry]
    assert await repository.get_audit_trail(two.domain, two.process_id, conn) == [entry]
    assert await repository.get_audit_trail("refunds", one.process_id, conn) == [entry]


async def test_nothing_is_given(repository: Repository, engine: AsyncEngine, conn: Connection) -> None:
    for each in ("list", "generator", "async generator"):
        assert await repository.save_many(given_as(each, new_processes(0)), conn) == 0
        assert await repository.log_many(given_as(each, for_process(DOMAIN, uuid4(), new_entries(0))), conn) == 0
        steps: list[Step] = []
        assert await repository.log_many(given_as(each, steps), conn) == 0
    assert await numbers(engine) == (0, 0)


async def test_only_new_entries_are_counted(repository: Repository, conn: Connection, process: ProcessMetadata) -> None:
    await repository.save(process, conn)
    known, new = new_entry("known"), list(new_entries(3))
    await repository.log_step(DOMAIN, process.process_id, known, conn)
    later = known.model_copy(update={"sent_at": NOON + timedelta(days=1)})  # delivered again, handled later
    assert await repository.log_many(for_process(DOMAIN, process.process_id, [new[0], later, *new[1:]]), conn) == 3
    steps = [(DOMAIN, process.process_id, entry) for entry in (known, *new)]
    assert await repository.log_many(steps, conn) == 0
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [known, *new]


async def test_thousands_of_items_are_sent_in_batches(repository: Repository, conn: Connection) -> None:
    processes = list(new_processes(2 * BATCH + 1))
    assert await repository.save_many(iter(processes), conn) == 2 * BATCH + 1
    assert all(process.version == 1 for process in processes)
    entries = list(new_entries(2 * BATCH + 1))
    steps = ((DOMAIN, process.process_id, entry) for process, entry in zip(processes, entries, strict=True))
    assert await repository.log_many(steps, conn) == 2 * BATCH + 1
    for number in (0, BATCH - 1, BATCH, 2 * BATCH):
        process = processes[number]
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entries[number]]


@pytest.mark.parametrize("delivery", ["first", "second"])
async def test_entries_of_one_time_are_in_the_order_in_which_they_were_given(
    repository: Repository, database_url: str, conn: Connection, delivery: str
) -> None:
    """Also where the server knows how large its tables are, and joins to them what was given as it likes best."""
    processes = list(new_processes(BATCH))
    await repository.save_many(processes)
    execute(database_url, "ANALYZE commandbus.process")
    one, other, *_ = processes
    entries = list(new_entries(BATCH + 100))
    steps = [(DOMAIN, processes[1 + number % 99].process_id, entry) for number, entry in enumerate(entries)]
    if delivery == "second":  # the first one broke off early
        await repository.log_many([*steps[:1], (DOMAIN, one.process_id, entries[0])])
    await repository.log_many(for_process(DOMAIN, one.process_id, entries), conn)
    assert step_names(await repository.get_audit_trail(DOMAIN, one.process_id, conn)) == step_names(entries)
    await repository.log_many(steps, conn)
    assert step_names(await repository.get_audit_trail(DOMAIN, other.process_id, conn)) == step_names(entries[::99])


# The same is stored as by the single methods.

ODD_TEXT = "\"'`\\ \\u0000 \\\\u0000 \\x00 \u2028\u2029 \x01\x1f\x7f é e\u0301 😀 null {} [1]"
ODD_OBJECT: JsonObject = {
    "text": ODD_TEXT,
    ODD_TEXT: ODD_TEXT,
    "": None,
    "numbers": [1e-7, 1.0, 1, -0.0, 5e-324, 10**100, -(10**300), 2**63, 0.1],
    "position": 7,
    "domain": "another",
    "nested": {"position": -1, "state": {"state": [[], {}, [{}], None, True, False]}},
    "order": {"b": 1, "a": 2, "aa": 3},
}


def deep(levels: int) -> JsonObject:
    return {"deep": [deep(levels - 1)] if levels else True}


LONG: list[JsonValue] = ["é" * 50_000] * 3
OBJECTS: list[JsonObject] = [{}, ODD_OBJECT, deep(80), {"long": LONG}]


async def stored(engine: AsyncEngine, table: Table, domain: str) -> list[tuple[Any, ...]]:
    """All columns that a domain's rows can have in common with another's."""
    columns = [cast(column, Text) for column in table.c if column.name not in {"domain", "id"}]
    order = table.c.process_id if table is process_table else table.c.id
    async with engine.connect() as connection:
        statement = select(*columns).where(table.c.domain == domain).order_by(order)
        return [tuple(row) for row in await connection.execute(statement)]


def odd_processes() -> Iterator[ProcessMetadata]:
    for state in OBJECTS:
        process = new_process()
        process.state = state
        yield process
    full = new_process()
    full.process_type = full.current_step = ODD_TEXT
    full.error_code = "é" * 255
    full.error_message = ODD_TEXT * 100
    full.created_at = datetime(1, 1, 1, tzinfo=UTC)
    full.updated_at = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
    full.completed_at = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    full.version = 7  # of another row; a new one begins again
    yield full
    empty = new_process()
    empty.error_code = empty.error_message = ""
    yield empty
    for status in ProcessStatus:
        process = new_process()
        process.status = status
        yield process


async def test_processes_are_stored_as_save_stores_them(repository: Repository, engine: AsyncEngine) -> None:
    processes = list(odd_processes())
    for process in processes:
        await repository.save(process.model_copy(update={"domain": "singly"}))
    await repository.save_many(process.model_copy(update={"domain": "in bulk"}) for process in processes)
    singly = await stored(engine, process_table, "singly")
    assert len(singly) == len(processes)
    assert await stored(engine, process_table, "in bulk") == singly


async def test_the_domain_of_many_may_be_any_text(repository: Repository) -> None:
    process, entry = new_process().model_copy(update={"domain": ODD_TEXT}), new_entry(ODD_TEXT, command_type=ODD_TEXT)
    await repository.save_many([process])
    await repository.log_many(for_process(ODD_TEXT, process.process_id, [entry]))
    assert await repository.get_by_id(ODD_TEXT, process.process_id) == process
    assert await repository.get_audit_trail(ODD_TEXT, process.process_id) == [entry]


def odd_entries() -> Iterator[ProcessAuditEntry]:
    for data in (None, *OBJECTS):
        yield new_entry(command_data=data)
        yield new_entry(reply_outcome=ReplyOutcome.SUCCESS, reply_data=data, received_at=NOON)
    yield new_entry(ODD_TEXT, command_type=ODD_TEXT, sent_at=datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC))
    for outcome in ReplyOutcome:
        yield new_entry(reply_outcome=outcome, received_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))


async def test_entries_are_stored_as_log_step_stores_them(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    entries = list(odd_entries())
    domains = ("singly", "in bulk", "of many")
    await repository.save_many(process.model_copy(update={"domain": domain}) for domain in domains)
    for entry in entries:
        await repository.log_step("singly", process.process_id, entry)
    await repository.log_many(for_process("in bulk", process.process_id, entries))
    await repository.log_many(("of many", process.process_id, entry) for entry in entries)
    singly = await stored(engine, process_audit, "singly")
    assert len(singly) == len(entries)
    assert await stored(engine, process_audit, "in bulk") == singly
    assert await stored(engine, process_audit, "of many") == singly
    # The server compares numbers as decimals, whatever Python makes of them.
    assert await repository.log_many(for_process("singly", process.process_id, entries)) == 0


async def test_replies_without_a_time_were_received_now(repository: Repository, process: ProcessMetadata) -> None:
    await repository.save(process)
    before = datetime.now(UTC)
    await repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(reply_outcome=ReplyOutcome.SUCCESS)]))
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id)
    assert found.received_at is not None
    assert before <= found.received_at <= datetime.now(UTC)


# What is in the way.


async def test_a_taken_id(repository: Repository, engine: AsyncEngine, process: ProcessMetadata) -> None:
    await repository.save(process)
    other = new_process(process.process_id)
    other.state = {"total": 99}
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        await repository.save_many([new_process(), other, new_process()])
    assert (caught.value.domain, caught.value.process_id, caught.value.other_errors) == (DOMAIN, process.process_id, ())
    assert await numbers(engine) == (1, 0)
    assert await repository.get_by_id(DOMAIN, process.process_id) == process


@pytest.mark.parametrize("between", [0, BATCH + 100])
async def test_one_id_twice(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata, between: int
) -> None:
    processes = [process, *new_processes(between), new_process(process.process_id), new_process()]
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        await repository.save_many(processes)
    assert (caught.value.domain, caught.value.process_id, caught.value.other_errors) == (DOMAIN, process.process_id, ())
    assert await numbers(engine) == (0, 0)


async def test_one_id_in_two_domains_is_two_processes(repository: Repository, process: ProcessMetadata) -> None:
    assert await repository.save_many([process, process.model_copy(update={"domain": "refunds"})]) == 2


def assert_is_told_with(error: ProcessError, others: list[tuple[type[ProcessError], UUID]]) -> None:
    assert [(type(other), other.process_id) for other in error.other_errors] == others
    assert f"and {len(others)} more" in str(error)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own pickle
    assert str(copied) == str(error)
    assert [vars(other) for other in copied.other_errors] == [vars(other) for other in error.other_errors]


async def test_the_first_taken_id_is_told_with_the_others(repository: Repository, engine: AsyncEngine) -> None:
    taken = list(new_processes(20))
    await repository.save_many(taken)
    offered = [new_process(process.process_id) for process in taken[::-1]]
    mixed = chain.from_iterable(zip(new_processes(20), offered, strict=True))
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        await repository.save_many(mixed)
    first, *others = (process.process_id for process in offered)
    assert caught.value.process_id == first
    assert_is_told_with(caught.value, [(ProcessAlreadyExistsError, other) for other in others])
    assert await numbers(engine) == (20, 0)


@pytest.mark.parametrize("between", [0, BATCH + 100])
async def test_one_entry_twice_is_harmless(
    repository: Repository, conn: Connection, process: ProcessMetadata, between: int
) -> None:
    await repository.save(process, conn)
    entry, others = new_entry(), list(new_entries(between))
    again = entry.model_copy(update={"sent_at": NOON - timedelta(days=1)})
    logged = await repository.log_many(for_process(DOMAIN, process.process_id, [entry, *others, again, entry]), conn)
    assert logged == 1 + between
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry, *others]


@pytest.mark.parametrize("between", [0, BATCH + 100])
async def test_another_entry_with_the_command_id_of_one_before_it(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata, between: int
) -> None:
    await repository.save(process)
    entry = new_entry()
    other = entry.model_copy(update={"command_data": {"quantity": 4}})
    with pytest.raises(StepAlreadyLoggedError) as caught:
        await repository.log_many(for_process(DOMAIN, process.process_id, [entry, *new_entries(between), other]))
    error = caught.value
    assert (error.domain, error.process_id, error.command_id) == (DOMAIN, process.process_id, entry.command_id)
    assert (error.recorded, error.given, error.other_errors) == (entry, other, ())
    assert await numbers(engine) == (1, 0)


DIFFERENCES: list[dict[str, object]] = [
    {"step_name": "other"},
    {"command_type": "Other"},
    {"command_data": {"quantity": 4}},
    {"command_data": None},
    {"reply_outcome": ReplyOutcome.FAILED},
    {"reply_data": {"reserved": 4}},
    {"reply_data": None},
]


async def test_each_difference_to_what_is_logged_is_seen(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    entry = new_entry(reply_outcome=ReplyOutcome.SUCCESS, reply_data={"reserved": 3}, received_at=NOON)
    await repository.log_step(DOMAIN, process.process_id, entry, conn)
    for difference in DIFFERENCES:
        other = entry.model_copy(update=difference)
        with pytest.raises(StepAlreadyLoggedError, match=next(iter(difference))) as caught:
            await repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(), other]), conn)
        assert (caught.value.recorded, caught.value.given) == (entry, other)
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry]


async def test_an_entry_that_was_replied_to_since_is_the_same(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    entry = new_entry()
    reply = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "received_at": NOON})
    await repository.log_many(for_process(DOMAIN, process.process_id, [entry]), conn)
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply, conn)
    for again in (entry, reply):
        assert await repository.log_many(for_process(DOMAIN, process.process_id, [again]), conn) == 0
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [reply]


async def insert_plainly(
    engine: AsyncEngine, process: ProcessMetadata, entry: ProcessAuditEntry, **changes: object
) -> None:
    """Log an entry as other software would, which writes plain SQL."""
    values = {"domain": DOMAIN, "process_id": process.process_id, **entry.model_dump(), **changes}
    async with engine.begin() as connection:
        await connection.execute(insert(process_audit).values(values))


async def test_a_json_null_is_no_data_when_many_are_logged(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = new_entry(command_data=None, reply_outcome=ReplyOutcome.SUCCESS, received_at=NOON)
    await insert_plainly(engine, process, entry, command_data=JSONB.NULL, reply_data=JSONB.NULL)
    assert await repository.log_many(for_process(DOMAIN, process.process_id, [entry])) == 0


async def test_an_outcome_of_newer_software_is_in_nobodys_way(
    repository: Repository, database_url: str, process: ProcessMetadata
) -> None:
    await repository.save(process)
    entry = new_entry()
    await repository.log_step(DOMAIN, process.process_id, entry)
    write_unchecked(database_url, "UPDATE commandbus.process_audit SET reply_outcome = 'PARTIAL', received_at = now()")
    assert await repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(), entry])) == 1
    other = entry.model_copy(update={"step_name": "other"})
    with pytest.raises((StoredDataError, StepAlreadyLoggedError), match=str(entry.command_id)):
        await repository.log_many(for_process(DOMAIN, process.process_id, [other]))


async def test_unknown_processes(repository: Repository, engine: AsyncEngine, process: ProcessMetadata) -> None:
    await repository.save(process)
    known, unknown = (DOMAIN, process.process_id), uuid4()
    with pytest.raises(ProcessNotFoundError) as caught:
        await repository.log_many(for_process(DOMAIN, unknown, [new_entry()]))
    assert (caught.value.domain, caught.value.process_id, caught.value.other_errors) == (DOMAIN, unknown, ())
    with pytest.raises(ProcessNotFoundError) as caught:
        await repository.log_many([(*known, new_entry()), ("refunds", process.process_id, new_entry())])
    assert (caught.value.domain, caught.value.process_id) == ("refunds", process.process_id)
    assert await numbers(engine) == (1, 0)


async def test_all_that_is_in_the_way_of_a_batch_is_told(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    key, unknown = (DOMAIN, process.process_id), (DOMAIN, uuid4())
    entry, redelivered = new_entry(), new_entry()
    await repository.log_many(for_process(*key, [entry, redelivered]))
    other = entry.model_copy(update={"step_name": "other"})
    steps = [
        (*key, new_entry()),
        (*key, other),
        (*key, redelivered),
        (*unknown, new_entry()),
        (*key, new_entry()),
        (*unknown, new_entry()),
    ]
    with pytest.raises(StepAlreadyLoggedError) as logged:
        await repository.log_many(steps)
    assert (logged.value.recorded, logged.value.given) == (entry, other)
    assert_is_told_with(logged.value, [(ProcessNotFoundError, unknown[1])] * 2)
    with pytest.raises(ProcessNotFoundError) as not_found:
        await repository.log_many(steps[3::-1])
    assert not_found.value.process_id == unknown[1]
    assert_is_told_with(not_found.value, [(StepAlreadyLoggedError, key[1])])
    assert await numbers(engine) == (1, 2)


async def swallow(administrator: AsyncEngine, table: str, which: str) -> None:
    """Have a trigger keep some rows from being written, without an error."""
    async with administrator.begin() as conn:
        await conn.execute(
            text("CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$")
        )
        await conn.execute(
            text(
                f"CREATE TRIGGER swallow BEFORE INSERT ON commandbus.{table} FOR EACH ROW "
                f"WHEN ({which}) EXECUTE FUNCTION swallow()"
            )
        )


async def test_one_entry_of_many_that_a_trigger_swallows(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    await swallow(administrator, "process_audit", "NEW.step_name = 'swallowed'")
    with pytest.raises(NothingWrittenError) as caught:
        await repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(), new_entry("swallowed")]))
    assert caught.value.process_id == process.process_id
    assert await numbers(engine) == (1, 0)


async def test_one_process_of_many_that_a_trigger_swallows(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    await swallow(administrator, "process", "NEW.status = 'FAILED'")
    process.status = ProcessStatus.FAILED
    with pytest.raises((NothingWrittenError, ProcessAlreadyExistsError)) as caught:
        await repository.save_many([new_process(), process])
    assert caught.value.process_id == process.process_id
    assert await numbers(engine) == (0, 0)


# All or nothing.


class CallersError(Exception):
    """What the caller's own code raises."""


@dataclass
class Known:
    """A process with one step, in the database."""

    repository: Repository
    process: ProcessMetadata
    entry: ProcessAuditEntry

    @property
    def key(self) -> tuple[str, UUID]:
        return DOMAIN, self.process.process_id

    def save(self, conn: Connection, last: Iterable[ProcessMetadata]) -> Awaitable[int]:
        """Save two batches and a part of the third, with something at its end that cannot be saved."""
        return self.repository.save_many(chain(new_processes(2 * BATCH), last), conn)

    def log(self, conn: Connection, last: Iterable[ProcessAuditEntry]) -> Awaitable[int]:
        # What is given again begins another batch.
        first, second, third = new_entries(3)
        return self.repository.log_many(for_process(*self.key, chain((first, second, first, third, first), last)), conn)

    def log_of_many(self, conn: Connection, last: Iterable[Step]) -> Awaitable[int]:
        steps = ((*self.key, entry) for entry in new_entries(2 * BATCH))
        return self.repository.log_many(chain(steps, last), conn)


@pytest.fixture
async def known(repository: Repository, process: ProcessMetadata) -> Known:
    entry = new_entry()
    await repository.save(process)
    await repository.log_step(DOMAIN, process.process_id, entry)
    return Known(repository, process, entry)


def break_off(item: Callable[[], Any]) -> Iterator[Any]:
    yield item()
    raise CallersError


NOT_A_NUMBER = {"total": float("nan")}
Failure = Callable[[Known, Connection], Awaitable[int]]
FAILURES: dict[str, tuple[type[Exception], Failure]] = {
    "a taken id": (
        ProcessAlreadyExistsError,
        lambda known, conn: known.save(conn, [new_process(), new_process(known.process.process_id)]),
    ),
    "a process that cannot be stored": (
        InvalidInputError,
        lambda known, conn: known.save(conn, [bad_process(state=NOT_A_NUMBER)]),
    ),
    "the caller's own error among processes": (
        CallersError,
        lambda known, conn: known.save(conn, break_off(new_process)),
    ),
    "another entry's command": (
        StepAlreadyLoggedError,
        lambda known, conn: known.log(conn, [known.entry.model_copy(update={"step_name": "other"})]),
    ),
    "an entry that cannot be stored": (
        InvalidInputError,
        lambda known, conn: known.log(conn, [bad_entry(command_data=NOT_A_NUMBER)]),
    ),
    "the caller's own error among entries": (CallersError, lambda known, conn: known.log(conn, break_off(new_entry))),
    "an unknown process": (
        ProcessNotFoundError,
        lambda known, conn: known.log_of_many(conn, [(DOMAIN, uuid4(), new_entry())]),
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_after_an_error_in_the_third_batch_nothing_is_kept(
    known: Known, engine: AsyncEngine, complaints: list[object], failure: str
) -> None:
    error, attempt = FAILURES[failure]
    async with no_task_is_left():
        with pytest.raises(error) as caught:
            await attempt(known, None)
        assert type(caught.value) is error
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del caught
    gc.collect()
    assert await numbers(engine) == (1, 1)
    assert complaints == []


@pytest.mark.parametrize("failure", FAILURES)
async def test_after_an_error_in_the_third_batch_the_callers_transaction_is_as_it_was_before(
    known: Known, engine: AsyncEngine, complaints: list[object], failure: str
) -> None:
    error, attempt = FAILURES[failure]
    before, after = new_process(), new_process()
    failed_statements: list[object] = []
    event.listen(engine.sync_engine, "handle_error", failed_statements.append)
    async with engine.connect() as conn:
        await known.repository.save(before, conn)
        async with no_task_is_left():
            with pytest.raises(error):
                await attempt(known, conn)
        assert conn.in_transaction()
        assert not conn.in_nested_transaction()
        assert await known.repository.save_many([after], conn) == 1
        await conn.commit()
    assert failed_statements == []
    assert await numbers(engine) == (3, 1)
    for process in (before, after):
        assert await known.repository.get_by_id(DOMAIN, process.process_id) == process
    gc.collect()
    assert complaints == []


async def test_after_an_error_in_the_first_batch_no_more_is_asked_for(
    known: Known, engine: AsyncEngine, conn: Connection, complaints: list[object]
) -> None:
    asked = 0

    async def processes() -> AsyncGenerator[ProcessMetadata]:
        nonlocal asked
        for process in chain([new_process(known.process.process_id)], new_processes(5 * BATCH)):
            asked += 1
            yield process

    async with aclosing(processes()) as items, no_task_is_left():
        with pytest.raises(ProcessAlreadyExistsError):
            await known.repository.save_many(items, conn)
    assert asked <= 2 * BATCH + 1
    if conn is not None:
        await conn.commit()
    assert await numbers(engine) == (1, 1)
    gc.collect()
    assert complaints == []


async def test_many_that_the_caller_rolls_back_are_gone(known: Known, engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        assert await known.repository.save_many(new_processes(3), conn) == 3
        assert await known.repository.log_many(for_process(*known.key, new_entries(3)), conn) == 3
        assert conn.in_transaction()
        assert not conn.in_nested_transaction()
        await conn.rollback()
    assert await numbers(engine) == (1, 1)


def note(seen: list[str], name: str) -> Callable[..., None]:
    return lambda *_: seen.append(name)


async def test_nothing_is_begun_committed_or_rolled_back_but_savepoints(known: Known, engine: AsyncEngine) -> None:
    seen: list[str] = []
    for name in ("begin", "commit", "rollback", "savepoint", "release_savepoint", "rollback_savepoint"):
        event.listen(engine.sync_engine, name, note(seen, name))
    async with engine.connect() as conn:
        await conn.begin()
        await known.repository.save_many(new_processes(2), conn)
        with pytest.raises(ProcessAlreadyExistsError):
            await known.repository.save_many([new_process(known.process.process_id)], conn)
        assert not conn.in_nested_transaction()
        await conn.commit()
    assert [name for name in seen if "savepoint" not in name] == ["begin", "commit"]
    assert "rollback_savepoint" in seen


async def test_an_error_of_the_callers_after_one_of_ours(
    known: Known, engine: AsyncEngine, complaints: list[object]
) -> None:
    """The batch that was sent last has failed already when the caller's code fails: nobody waits for it any more."""
    before = asyncio.all_tasks()

    async def processes() -> AsyncIterator[ProcessMetadata]:
        yield new_process(known.process.process_id)
        for process in new_processes(BATCH):
            yield process
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 - for the task that sends, which has no name here
            await asyncio.sleep(0)
        raise CallersError

    with pytest.raises((CallersError, ProcessAlreadyExistsError)) as caught:
        await known.repository.save_many(processes())
    del caught
    gc.collect()
    assert await numbers(engine) == (1, 1)
    assert complaints == []


# Autocommit, in which statements cannot take effect together.


async def test_a_connection_in_autocommit_is_refused(known: Known, engine: AsyncEngine) -> None:
    statements = Statements(engine)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        for call in (
            known.repository.save_many([new_process()], conn),
            known.repository.log_many(for_process(*known.key, [new_entry()]), conn),
            known.repository.log_many([(*known.key, new_entry())], conn),
        ):
            with pytest.raises(InvalidInputError, match="autocommit") as caught:
                await call
            assert caught.value.field == "conn"
        assert statements.sent == []
        await known.repository.save(new_process(), conn)
    assert await numbers(engine) == (2, 1)


@pytest.fixture
async def in_autocommit(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine whose only connection is in autocommit."""
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "connect_args": {"prepare_threshold": None}}
    made = create_async_engine(engine.url, isolation_level="AUTOCOMMIT", **options)
    yield made
    await made.dispose()


async def driver_of(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return (await connection.get_raw_connection()).driver_connection


async def test_an_engine_in_autocommit_is_no_exception(known: Known, in_autocommit: AsyncEngine) -> None:
    driver = await driver_of(in_autocommit)
    assert driver.autocommit
    known.repository = PostgresProcessRepository(in_autocommit)
    for error, attempt in (FAILURES["a taken id"], FAILURES["another entry's command"]):
        with pytest.raises(error):
            await attempt(known, None)
        assert await numbers(in_autocommit) == (1, 1)
    assert await known.repository.save_many(new_processes(3)) == 3
    assert await known.repository.log_many(for_process(*known.key, new_entries(3))) == 3
    assert await numbers(in_autocommit) == (4, 4)
    again = await driver_of(in_autocommit)
    assert again is driver
    assert again.autocommit
    # Not only by its name: what is written takes effect at once.
    async with in_autocommit.connect() as conn:
        await known.repository.save(new_process(), conn)
        await conn.rollback()
    assert await numbers(in_autocommit) == (5, 4)


# Cancellation.


async def _run(operation: Awaitable[None]) -> None:
    await operation


async def test_cancelled_wherever_it_waits(known: Known, engine: AsyncEngine, complaints: list[object]) -> None:
    """Before, within and between three batches: an entry that is given again begins another one."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    cancelled = finished = kept = 0
    before = asyncio.all_tasks()
    task = None
    async with no_task_is_left():
        for delay in (0, 3, 9):
            for point in count(1):
                first, *others = new_entries(4)
                entries = list(chain.from_iterable((first, other) for other in others))

                async def log(entries: list[ProcessAuditEntry] = entries) -> None:
                    async with aclosing(asynchronous(for_process(*known.key, entries))) as items:
                        assert await known.repository.log_many(items) == 4

                operation = Cancelled(log(), point, delay)
                task = asyncio.create_task(_run(operation))
                await asyncio.wait([task])
                assert asyncio.all_tasks() == before
                assert pool.checkedout() == 0
                there = len(await known.repository.get_audit_trail(*known.key)) - 1
                if task.cancelled():
                    cancelled += 1
                    assert there in {kept, kept + 4}  # the COMMIT may have been done
                else:
                    task.result()
                    finished += 1
                    assert there == kept + 4
                kept = there
                if operation.waits < point:
                    break
    del task
    gc.collect()
    assert complaints == []
    assert finished >= 3
    assert cancelled > 20


async def test_cancelled_between_two_batches(known: Known, engine: AsyncEngine, complaints: list[object]) -> None:
    asked = asyncio.Event()

    async def processes() -> AsyncIterator[ProcessMetadata]:
        for process in new_processes(BATCH + 1):
            yield process
        asked.set()
        await asyncio.Event().wait()

    async with no_task_is_left():
        task = asyncio.create_task(known.repository.save_many(processes()))
        await asked.wait()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert await numbers(engine) == (1, 1)
    asked.clear()
    async with engine.connect() as conn:
        await known.repository.save(new_process(), conn)
        async with no_task_is_left():
            task = asyncio.create_task(known.repository.save_many(processes(), conn))
            await asked.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        await conn.commit()  # no statement was cut off, so the caller's transaction goes on
    assert await numbers(engine) == (2, 1)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del task
    gc.collect()
    assert complaints == []


async def test_cancelled_while_it_waits_for_a_lock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, complaints: list[object]
) -> None:
    process = new_process()
    async with engine.begin() as holder:
        await repository.save(process, holder)
        async with no_task_is_left():
            processes = chain(new_processes(BATCH), [new_process(process.process_id)])
            task = asyncio.create_task(repository.save_many(processes))
            await is_waiting_for_a_lock(administrator)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        # The lock is still held, so the other would still wait for it, were it not gone from the server too.
        assert await waiting_sessions(administrator) == 0
    assert await numbers(engine) == (1, 0)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del task
    gc.collect()
    assert complaints == []


async def sent_into_a_lock(
    taken: ProcessMetadata, administrator: AsyncEngine, then: Callable[[], AsyncIterator[ProcessMetadata]]
) -> AsyncGenerator[ProcessMetadata]:
    """A batch that has to wait for the lock, and what comes while it does."""
    yield new_process(taken.process_id)
    for process in new_processes(BATCH):
        yield process
    await is_waiting_for_a_lock(administrator)
    async for process in then():
        yield process


async def forever() -> AsyncIterator[ProcessMetadata]:
    await asyncio.Event().wait()
    yield new_process()


async def refused() -> AsyncIterator[ProcessMetadata]:
    yield bad_process(state=NOT_A_NUMBER)


async def test_cancelled_while_it_prepares_a_batch_and_the_last_waits_for_a_lock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    async with engine.connect() as holder:
        await repository.save(process, holder)
        async with aclosing(sent_into_a_lock(process, administrator, forever)) as items, no_task_is_left():
            task = asyncio.create_task(repository.save_many(items))
            await is_waiting_for_a_lock(administrator)
            task.cancel()
            async with asyncio.timeout(30):
                await asyncio.wait([task])
        assert task.cancelled()
        assert await waiting_sessions(administrator) == 0
        await holder.rollback()
    assert await numbers(engine) == (0, 0)


async def test_a_process_is_refused_while_the_last_batch_waits_for_a_lock(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, process: ProcessMetadata
) -> None:
    async with engine.connect() as holder:
        await repository.save(process, holder)
        async with aclosing(sent_into_a_lock(process, administrator, refused)) as items, no_task_is_left():
            async with asyncio.timeout(30):
                with pytest.raises(InvalidInputError) as caught:
                    await repository.save_many(items)
        assert caught.value.field == f"processes[{BATCH + 1}].state"
        assert await waiting_sessions(administrator) == 0
        await holder.rollback()
    assert await numbers(engine) == (0, 0)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0


async def test_a_callers_connection_that_is_cancelled_in_a_batch_has_to_be_rolled_back(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, complaints: list[object]
) -> None:
    process = new_process()
    async with engine.connect() as holder, engine.connect() as conn:
        await repository.save(process, holder)
        await repository.save(new_process(), conn)
        async with no_task_is_left():
            task = asyncio.create_task(repository.save_many([new_process(process.process_id)], conn))
            await is_waiting_for_a_lock(administrator)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        await holder.rollback()
        with pytest.raises(PendingRollbackError):
            await repository.save_many([new_process()], conn)
        await conn.rollback()
        assert await repository.save_many([process], conn) == 1
        await conn.commit()
    assert await numbers(engine) == (1, 0)
    del task
    gc.collect()
    assert complaints == []


async def test_a_connection_that_is_lost_in_a_batch(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, complaints: list[object]
) -> None:
    process = new_process()
    async with engine.begin() as holder:
        await repository.save(process, holder)
        async with no_task_is_left():
            processes = chain(new_processes(BATCH), [new_process(process.process_id)])
            task = asyncio.create_task(repository.save_many(processes))
            await is_waiting_for_a_lock(administrator)
            async with administrator.connect() as connection:
                await connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                )
            with pytest.raises(DBAPIError) as caught:
                await task
            assert caught.value.connection_invalidated
    assert await numbers(engine) == (1, 0)
    assert await repository.save_many(new_processes(2)) == 2
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    del task, caught
    gc.collect()
    assert complaints == []


# At once.


async def test_two_that_save_the_same_ids(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine, isolation_level: str
) -> None:
    shared = list(new_processes(3))
    loser = [new_process(), *(new_process(process.process_id) for process in shared)]
    async with engine.connect() as conn:
        await repository.save_many([new_process(), *shared], conn)
        task = asyncio.ensure_future(repository.save_many(loser))
        await is_waiting_for_a_lock(administrator)
        await conn.commit()
    [error] = await asyncio.gather(task, return_exceptions=True)
    if isolation_level == "READ COMMITTED":
        assert isinstance(error, ProcessAlreadyExistsError)
        told = {error.process_id, *(other.process_id for other in error.other_errors)}
        assert told == {process.process_id for process in shared}
    else:
        assert isinstance(error, TransactionConflictError)
        assert error.retryable
    assert await numbers(engine) == (4, 0)
    assert await repository.get_by_id(DOMAIN, loser[0].process_id) is None


async def test_of_two_that_save_the_same_thousands_of_ids_one_wins(repository: Repository, engine: AsyncEngine) -> None:
    ids = [uuid4() for _ in range(BATCH + 200)]
    async with asyncio.timeout(60):
        results = await asyncio.gather(
            *(repository.save_many(new_process(each) for each in ids) for _ in range(2)), return_exceptions=True
        )
    [lost] = [result for result in results if result != len(ids)]
    assert isinstance(lost, ProcessAlreadyExistsError | TransactionConflictError)
    assert await numbers(engine) == (len(ids), 0)


@pytest.mark.parametrize("end", ["kept", "kept, another entry", "rolled back"])
async def test_two_that_log_the_same_commands(
    repository: Repository,
    engine: AsyncEngine,
    administrator: AsyncEngine,
    process: ProcessMetadata,
    isolation_level: str,
    end: str,
) -> None:
    await repository.save(process)
    entry = new_entry()
    other = entry.model_copy(update={"step_name": "reserve" if end == "kept" else "other"})
    async with engine.connect() as conn:
        await repository.log_many(for_process(DOMAIN, process.process_id, [entry]), conn)
        task = asyncio.ensure_future(repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(), other])))
        await is_waiting_for_a_lock(administrator)
        await (conn.rollback() if end == "rolled back" else conn.commit())
    [result] = await asyncio.gather(task, return_exceptions=True)
    there = 2
    if end == "rolled back":
        assert result == 2
    elif isolation_level != "READ COMMITTED":
        assert isinstance(result, TransactionConflictError)
        there = 1
    elif end == "kept":
        assert result == 1
    else:
        assert isinstance(result, StepAlreadyLoggedError)
        assert (result.recorded, result.given) == (entry, other)
        there = 1
    assert await numbers(engine) == (1, there)


@pytest.mark.parametrize("end", ["deleted", "rolled back"])
async def test_many_steps_of_a_process_that_is_being_deleted(
    repository: Repository,
    engine: AsyncEngine,
    administrator: AsyncEngine,
    process: ProcessMetadata,
    isolation_level: str,
    end: str,
) -> None:
    await repository.save(process)
    async with administrator.connect() as deleting, engine.connect() as conn:
        await repository.save(new_process(), conn)
        await deleting.execute(delete(process_table))
        task = asyncio.ensure_future(repository.log_many(for_process(DOMAIN, process.process_id, new_entries(3)), conn))
        await is_waiting_for_a_lock(administrator)
        await (deleting.commit() if end == "deleted" else deleting.rollback())
        [result] = await asyncio.gather(task, return_exceptions=True)
        if end == "rolled back":
            assert result == 3
            await conn.commit()
            assert await numbers(engine) == (2, 3)
        elif isolation_level == "READ COMMITTED":
            assert isinstance(result, ProcessNotFoundError)
            assert len(result.other_errors) == 2
            await conn.commit()
            assert await numbers(engine) == (1, 0)
        else:
            assert isinstance(result, TransactionConflictError)


async def test_an_obstacle_to_many_that_goes_away_between_two_statements(
    repository: Repository, engine: AsyncEngine, database_url: str, process: ProcessMetadata
) -> None:
    """What was in the way of the first statement is gone when the second looks for it: it is written after all."""
    await repository.save(process)
    entry, redelivered = new_entry(), new_entry()
    key = DOMAIN, process.process_id
    await repository.log_many(for_process(*key, [entry.model_copy(update={"step_name": "in the way"}), redelivered]))
    seen: list[str] = []

    def clear_the_way(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)
        if len(seen) == 2:  # before the statement that looks for what is in the way
            execute(database_url, "DELETE FROM commandbus.process_audit WHERE step_name = 'in the way'")

    event.listen(engine.sync_engine, "before_cursor_execute", clear_the_way)
    # A transaction that has its snapshot already would still see the obstacle.
    own = PostgresProcessRepository(engine.execution_options(isolation_level="READ COMMITTED"))
    assert await own.log_many(for_process(*key, [new_entry(), entry, redelivered, new_entry()])) == 3
    event.remove(engine.sync_engine, "before_cursor_execute", clear_the_way)
    assert len(seen) == 4
    assert len(await repository.get_audit_trail(*key)) == 4


async def test_the_next_batch_is_prepared_while_the_server_has_the_last(
    repository: Repository, engine: AsyncEngine, administrator: AsyncEngine
) -> None:
    process = new_process()
    async with engine.connect() as holder:
        await repository.save(process, holder)

        async def processes() -> AsyncIterator[ProcessMetadata]:
            yield new_process(process.process_id)
            for each in new_processes(BATCH):
                yield each
            await is_waiting_for_a_lock(administrator)  # the first batch, which has been sent
            await holder.rollback()
            yield new_process()

        async with asyncio.timeout(60):
            assert await repository.save_many(processes()) == BATCH + 2
