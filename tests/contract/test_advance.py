"""A step of a process manager is taken whole or not at all: the reply, the commands that go out, and the process."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    NothingWrittenError,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessLockedError,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ProcessStatus,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StepNotFoundError,
    StepReply,
)
from tests.conftest import DOMAIN, new_process
from tests.support.databases import async_url, execute
from tests.support.retrying import assert_can_be_run_again
from tests.support.waiting import is_waiting_for_a_lock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = timedelta(days=1)
RACERS = 4
Repository = PostgresProcessRepository[JsonObject]

# What the tables hold, and where each row lies: writing the same values once more moves it.
EVERYTHING = text(
    "SELECT 'process', ctid::text, each::text FROM commandbus.process AS each "
    "UNION ALL SELECT 'step', ctid::text, each::text FROM commandbus.process_audit AS each ORDER BY 1, 2"
)


def new_command(step_name: str = "charge", **changes: object) -> ProcessAuditEntry:
    entry = ProcessAuditEntry(
        step_name="charge", command_id=uuid4(), command_type="Do", command_data={"amount": 42.5}, sent_at=NOON
    )
    return entry.model_copy(update={"step_name": step_name, **changes})


def reply_to(entry: ProcessAuditEntry, **changes: object) -> ProcessAuditEntry:
    reply = ProcessAuditEntry(
        step_name="reply",
        command_id=entry.command_id,
        reply_outcome=ReplyOutcome.SUCCESS,
        reply_data={"reserved": 3},
        received_at=NOON + timedelta(minutes=5),
    )
    return reply.model_copy(update=changes)


def answered(entry: ProcessAuditEntry, reply: ProcessAuditEntry) -> ProcessAuditEntry:
    """The entry as it is stored once its reply is recorded."""
    return entry.model_copy(
        update={name: getattr(reply, name) for name in ("reply_outcome", "reply_data", "received_at")}
    )


@dataclass
class Waiting:
    """A process at version 2 that waits for the reply to one command, and has had the one to another.

    Attributes:
        conn: The connection that the process was made on, and that the test passes on.
        asked: The command that nobody has replied to.
        done: The command with its reply.
    """

    repository: Repository
    engine: AsyncEngine
    conn: AsyncConnection | None
    process: ProcessMetadata = field(default_factory=new_process)
    asked: ProcessAuditEntry = field(default_factory=lambda: new_command("reserve"))
    done: ProcessAuditEntry = field(default_factory=lambda: new_command("check"))

    def __post_init__(self) -> None:
        self.done = answered(self.done, reply_to(self.done))

    def next(self, **changes: object) -> ProcessMetadata:
        """Another worker's copy of the process, as it is to be after the step."""
        after: dict[str, object] = {
            "status": ProcessStatus.COMPENSATING,
            "current_step": "charge",
            "state": {"total": 13, "text": "é\n"},
            "error_code": "DECLINED",
            "error_message": "the card was declined",
            "completed_at": NOON + timedelta(hours=1),
        }
        return self.process.model_copy(deep=True, update=after | changes)

    @property
    def key(self) -> tuple[str, UUID]:
        return self.process.domain, self.process.process_id

    async def select(self, statement: str) -> list[dict[str, Any]]:
        """Read with SQL of the test's own."""
        if self.conn is not None:
            return [dict(row) for row in (await self.conn.execute(text(statement))).mappings()]
        async with self.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(text(statement))).mappings()]

    async def everything(self) -> list[dict[str, Any]]:
        return await self.select(EVERYTHING.text)

    async def trail(self) -> list[ProcessAuditEntry]:
        return await self.repository.get_audit_trail(*self.key, self.conn)


async def waiting_process(repository: Repository, engine: AsyncEngine, conn: AsyncConnection | None) -> Waiting:
    made = Waiting(repository, engine, conn)
    await repository.save(made.process, conn)
    await repository.update(made.process, conn)
    for entry in (made.done, made.asked):
        await repository.log_step(*made.key, entry, conn)
    return made


@pytest.fixture
async def waiting(repository: Repository, engine: AsyncEngine, conn: AsyncConnection | None) -> Waiting:
    """For a test that runs with a connection of the caller's and without one."""
    return await waiting_process(repository, engine, conn)


@pytest.fixture
async def committed(repository: Repository, engine: AsyncEngine) -> Waiting:
    """For a test in which others see the process too."""
    return await waiting_process(repository, engine, None)


@pytest.fixture
async def onlooker(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Sees who waits for a lock; an administrator of a database that need not be the test's own."""
    engine = create_async_engine(async_url(database_url))
    yield engine
    await engine.dispose()


SHAPES: dict[str, tuple[bool, list[str]]] = {
    "a reply and a command": (True, ["charge"]),
    "a reply and three commands": (True, ["ship", "charge", "notify"]),
    "a reply": (True, []),
    "a command": (False, ["charge"]),
    "two commands": (False, ["ship", "charge"]),
    "neither": (False, []),
}


@pytest.mark.parametrize(("with_reply", "names"), SHAPES.values(), ids=SHAPES)
async def test_a_step_is_stored_whole(waiting: Waiting, *, with_reply: bool, names: list[str]) -> None:
    reply = reply_to(waiting.asked) if with_reply else None
    sent = [new_command(name) for name in names]
    process = waiting.next(created_at=NOON)  # which is never written
    [before] = await waiting.select("SELECT *, clock_timestamp() AS clock FROM commandbus.process")
    assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    [stored] = await waiting.select("SELECT *, now() AS now, clock_timestamp() AS clock FROM commandbus.process")
    now, clock = stored.pop("now"), stored.pop("clock")
    if waiting.conn is None:
        assert before["clock"] < stored["updated_at"] < clock
    else:
        assert stored["updated_at"] == now
    assert stored == {
        "domain": DOMAIN,
        "process_id": waiting.process.process_id,
        "process_type": "order",
        "status": "COMPENSATING",
        "current_step": "charge",
        "state": {"total": 13, "text": "é\n"},
        "error_code": "DECLINED",
        "error_message": "the card was declined",
        "created_at": waiting.process.created_at,
        "updated_at": process.updated_at,
        "completed_at": NOON + timedelta(hours=1),
        "version": 3,
    }
    expected = waiting.next(created_at=NOON, version=3, updated_at=stored["updated_at"])
    assert process == expected

    replied = (
        {"reply_outcome": "SUCCESS", "reply_data": {"reserved": 3}, "received_at": NOON + timedelta(minutes=5)}
        if with_reply
        else {"reply_outcome": None, "reply_data": None, "received_at": None}
    )
    unreplied = {"reply_outcome": None, "reply_data": None, "received_at": None}
    steps = await waiting.select("SELECT * FROM commandbus.process_audit ORDER BY id")
    assert [{**step, "id": None} for step in steps[1:]] == [
        {
            "id": None,
            "domain": DOMAIN,
            "process_id": waiting.process.process_id,
            "step_name": entry.step_name,
            "command_id": entry.command_id,
            "command_type": "Do",
            "command_data": {"amount": 42.5},
            "sent_at": NOON,
            "compensates": None,
            **columns,
        }
        for entry, columns in [(waiting.asked, replied), *((entry, unreplied) for entry in sent)]
    ]
    asked = waiting.asked if reply is None else answered(waiting.asked, reply)
    assert await waiting.trail() == [waiting.done, asked, *sent]


async def test_many_commands_are_in_the_trail_in_the_order_in_which_they_were_given(committed: Waiting) -> None:
    sent = [new_command(f"step {number}") for number in range(200)]
    await committed.repository.advance(committed.next(), sent=(entry for entry in sent))
    assert await committed.trail() == [committed.done, committed.asked, *sent]


async def test_one_entry_is_one_command(committed: Waiting) -> None:
    sent = new_command()
    await committed.repository.advance(committed.next(), sent=sent)
    assert await committed.trail() == [committed.done, committed.asked, sent]


async def test_a_reply_without_a_time_was_received_at_this_moment(committed: Waiting) -> None:
    reply, before = reply_to(committed.asked, received_at=None), datetime.now(UTC)
    sent = new_command(reply_outcome=ReplyOutcome.CANCELED, sent_at=before)
    await committed.repository.advance(committed.next(), reply=reply, sent=sent)
    for entry in (await committed.trail())[1:]:
        assert entry.received_at is not None
        assert before <= entry.received_at <= datetime.now(UTC)


async def test_a_reply_without_a_time_was_received_before_the_commands_that_it_causes(committed: Waiting) -> None:
    """They were made before the library was called."""
    reply = StepReply(committed.asked.command_id, ReplyOutcome.SUCCESS)
    sent = [new_command(sent_at=datetime.now(UTC)), new_command("ship", sent_at=datetime.now(UTC))]
    await committed.repository.advance(committed.next(), reply=reply, sent=sent)
    asked = next(entry for entry in await committed.trail() if entry.command_id == committed.asked.command_id)
    assert asked.received_at is not None
    assert all(asked.received_at <= entry.sent_at for entry in sent)


async def test_what_is_sent_is_stored_as_the_single_methods_store_it(committed: Waiting) -> None:
    """The entries go to the server in another form than a single one, where anything could change on the way."""
    odd: JsonObject = {
        "n": [1e-7, 10**30, -0.5, 1.0, True, None, {}, []],
        'k"\\': "é\n\t\x7f\u2028😀 \\u0041 '",
        "": "$1 %s :x",
    }
    sent = [
        new_command("plain", command_data=odd),
        new_command('"quoted" \\ {n} %s :x é😀', command_type="x" * 255),
        new_command("no data", command_data=None),
        new_command("empty", command_data={}),
        new_command("first moment", sent_at=datetime(1, 1, 1, tzinfo=UTC)),
        new_command("last moment", sent_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        new_command("a microsecond", sent_at=NOON + timedelta(microseconds=1)),
        *(
            new_command("replied", reply_outcome=outcome, reply_data=data, received_at=NOON)
            for outcome in ReplyOutcome
            for data in (odd, {}, None)
        ),
    ]
    single = new_process()
    await committed.repository.save(single)
    for entry in sent:
        await committed.repository.log_step(DOMAIN, single.process_id, entry)
    asked = new_command("asked")
    await committed.repository.log_step(DOMAIN, single.process_id, asked)
    reply = reply_to(asked, reply_data=odd)
    await committed.repository.update_step_reply(DOMAIN, single.process_id, asked.command_id, reply)

    await committed.repository.advance(
        committed.next(), reply=reply_to(committed.asked, reply_data=odd), sent=[*sent, new_command("asked")]
    )

    async def columns(process_id: UUID, names: str) -> list[list[Any]]:
        rows = await committed.select(
            f"SELECT {names} FROM commandbus.process_audit WHERE process_id = '{process_id}' ORDER BY id"
        )
        return [list(row.values()) for row in rows]

    names = "step_name, command_type, command_data::text, sent_at::text, reply_outcome, reply_data::text, received_at"
    by_single_methods = await columns(single.process_id, names)
    at_once = await columns(committed.process.process_id, names)
    assert at_once[2:-1] == by_single_methods[:-1]  # before them are the two that were there already
    assert at_once[1][4:] == by_single_methods[-1][4:]


@dataclass
class Refused:
    """A step that cannot be taken, and the error that says why."""

    error: type[ProcessRepositoryError]
    facts: Mapping[str, object]
    process: ProcessMetadata
    reply: ProcessAuditEntry | None
    sent: Sequence[ProcessAuditEntry]


def refused_for_the_process(waiting: Waiting) -> list[Refused]:
    unknown, stale, ahead = uuid4(), {"expected_version": 1, "actual_version": 2}, {"version": 7}
    refused: list[Refused] = []
    for with_reply, names in SHAPES.values():
        step = reply_to(waiting.asked) if with_reply else None, [new_command(name) for name in names]
        key = {"domain": DOMAIN, "process_id": waiting.process.process_id}
        refused += [
            Refused(ConcurrentUpdateError, key | stale, waiting.next(version=1), *step),
            Refused(ConcurrentUpdateError, {"expected_version": 7, "actual_version": 2}, waiting.next(**ahead), *step),
            Refused(ProcessNotFoundError, {"process_id": unknown}, waiting.next(process_id=unknown), *step),
            Refused(ProcessNotFoundError, {"domain": "refunds"}, waiting.next(domain="refunds"), *step),
        ]
    return refused


def refused_for_the_reply(waiting: Waiting) -> list[Refused]:
    unknown = new_command("never logged")
    same = reply_to(waiting.done, received_at=NOON + LATER)
    others = [
        reply_to(waiting.done, reply_outcome=ReplyOutcome.FAILED),
        reply_to(waiting.done, reply_data={"reserved": 2}),
        reply_to(waiting.done, reply_data=None),
    ]
    refused: list[Refused] = []
    for sent in ([], [new_command()], [new_command(), new_command("ship")]):
        facts: Mapping[str, object] = {"command_id": unknown.command_id}
        refused.append(Refused(StepNotFoundError, facts, waiting.next(), reply_to(unknown), sent))
        for reply in (same, *others) if sent else others:  # the same reply alone is a redelivery
            facts = {"command_id": waiting.done.command_id, "recorded": waiting.done, "given": reply}
            refused.append(Refused(ReplyConflictError, facts, waiting.next(), reply, sent))
    return refused


def refused_for_a_command(waiting: Waiting) -> list[Refused]:
    there, done = waiting.asked, waiting.done
    refused: list[Refused] = []
    for given in (
        there.model_copy(),
        there.model_copy(update={"step_name": "other"}),
        there.model_copy(update={"command_data": None}),
        there.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS}),
    ):
        facts: Mapping[str, object] = {"command_id": there.command_id, "recorded": there, "given": given}
        refused += [
            Refused(StepAlreadyLoggedError, facts, waiting.next(), None, sent)
            for sent in at_every_place(given)
            if given != there or len(sent) > 1  # the same command alone is a redelivery
        ]
    facts = {"command_id": done.command_id, "recorded": done, "given": done}
    refused += [
        Refused(StepAlreadyLoggedError, facts, waiting.next(), reply_to(there), sent) for sent in at_every_place(done)
    ]
    return refused


def at_every_place(entry: ProcessAuditEntry) -> list[list[ProcessAuditEntry]]:
    return [[entry], [entry, new_command()], [new_command(), entry], [new_command(), entry, new_command()]]


@pytest.mark.parametrize(
    "refused_for",
    [refused_for_the_process, refused_for_the_reply, refused_for_a_command],
    ids=lambda each: each.__name__,
)
async def test_a_step_that_is_refused_leaves_everything_as_it_was(
    waiting: Waiting, refused_for: Callable[[Waiting], list[Refused]]
) -> None:
    failed_statements: list[object] = []
    event.listen(waiting.engine.sync_engine, "handle_error", failed_statements.append)
    for refused in refused_for(waiting):
        before, given = await waiting.everything(), refused.process.model_copy(deep=True)
        with pytest.raises(refused.error) as caught:
            await waiting.repository.advance(refused.process, waiting.conn, reply=refused.reply, sent=refused.sent)
        assert type(caught.value) is refused.error
        assert {name: getattr(caught.value, name) for name in refused.facts} == refused.facts
        assert refused.process == given
        assert await waiting.everything() == before
        if waiting.conn is not None:
            assert waiting.conn.in_transaction()
            await waiting.repository.save(new_process(), waiting.conn)
    assert failed_statements == []


def test_an_error_about_the_same_says_what_is_missing() -> None:
    entry = new_command()
    recorded = answered(entry, reply_to(entry))
    for error in (
        ReplyConflictError(DOMAIN, uuid4(), recorded, reply_to(entry), "command 7", is_same=True),
        StepAlreadyLoggedError(DOMAIN, uuid4(), entry, entry.model_copy(), [], "command 7"),
    ):
        assert error.is_same
        assert "command 7 is not" in str(error)


@pytest.mark.parametrize(("stored", "given"), [({"paid": 1}, {"paid": True}), ({"paid": 0}, {"paid": False})])
async def test_data_that_is_equal_only_to_python_is_other_data(
    waiting: Waiting, stored: JsonObject, given: JsonObject
) -> None:
    repository, key, conn = waiting.repository, waiting.key, waiting.conn
    entry = new_command(command_data=stored)
    await repository.log_step(*key, entry, conn)
    await repository.update_step_reply(*key, entry.command_id, reply_to(entry, reply_data=stored), conn)
    with pytest.raises(ReplyConflictError, match="other data") as reply:
        await repository.update_step_reply(*key, entry.command_id, reply_to(entry, reply_data=given), conn)
    with pytest.raises(StepAlreadyLoggedError, match=r"\(they differ in command_data\)") as logged:
        await repository.log_step(*key, entry.model_copy(update={"command_data": given}), conn)
    assert not reply.value.is_same
    assert not logged.value.is_same
    assert logged.value.different == ("command_data",)


async def test_a_step_of_another_process_is_not_answered_and_not_in_the_way(waiting: Waiting) -> None:
    """The same command ids, in a process of the same domain and in one of the same id."""
    neighbours = [new_process(), waiting.process.model_copy(deep=True, update={"domain": "refunds"})]
    sent = [new_command(), new_command("ship")]
    for neighbour in neighbours:
        await waiting.repository.save(neighbour, waiting.conn)
        for entry in (waiting.asked, *sent):
            await waiting.repository.log_step(neighbour.domain, neighbour.process_id, entry, waiting.conn)
    reply = reply_to(waiting.asked)
    await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=sent)
    assert await waiting.trail() == [waiting.done, answered(waiting.asked, reply), *sent]
    for neighbour in neighbours:
        key = neighbour.domain, neighbour.process_id
        assert await waiting.repository.get_by_id(*key, waiting.conn) == neighbour
        assert await waiting.repository.get_audit_trail(*key, waiting.conn) == [waiting.asked, *sent]


async def test_a_step_that_only_another_process_has(waiting: Waiting) -> None:
    """What there is of it there says nothing about it here: not that it was sent, not that it waits."""
    theirs = new_command()
    for neighbour in (new_process(), waiting.process.model_copy(deep=True, update={"domain": "refunds"})):
        await waiting.repository.save(neighbour, waiting.conn)
        for entry in (theirs, new_command(command_id=waiting.done.command_id)):
            await waiting.repository.log_step(neighbour.domain, neighbour.process_id, entry, waiting.conn)
    before = await waiting.everything()
    for sent in ([], [new_command()], [new_command(), new_command()]):
        for entry, error in ((theirs, StepNotFoundError), (waiting.done, ReplyConflictError)):
            if not sent and entry is waiting.done:
                continue  # which is a redelivery
            with pytest.raises(error):
                await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply_to(entry), sent=sent)
            assert await waiting.everything() == before


async def test_a_process_of_another_type_than_it_has_in_its_row(waiting: Waiting) -> None:
    by_type: dict[str, Any] = {"order": dict, "refund": dict}
    repository = PostgresProcessRepository[JsonObject](waiting.engine, state_type=by_type)
    before = await waiting.everything()
    for with_reply, names in SHAPES.values():
        reply, sent = reply_to(waiting.asked) if with_reply else None, [new_command(name) for name in names]
        process = waiting.next(process_type="refund")
        with pytest.raises(InvalidInputError) as caught:
            await repository.advance(process, waiting.conn, reply=reply, sent=sent)
        assert caught.value.field == "process_type"
        assert process == waiting.next(process_type="refund")
        assert await waiting.everything() == before
    await repository.advance(waiting.next(), waiting.conn, reply=reply_to(waiting.asked), sent=new_command())


def invalid_steps() -> Iterable[tuple[str, ProcessMetadata, ProcessAuditEntry | None, list[Any]]]:
    """Where the fault is, and the step."""
    process, reply, nan = new_process(), reply_to(new_command()), {"n": float("nan")}
    process.version = 1
    twice = new_command()
    same_id = new_command(command_id=twice.command_id)
    yield "process.version", process.model_copy(update={"version": None}), reply, [new_command()]
    yield "process.version", process.model_copy(update={"version": None}), None, []
    yield "process", process.model_copy(update={"version": 0, "current_step": "x" * 256}), reply, []
    yield "state", process.model_copy(update={"state": nan}), reply, [new_command()]
    yield "reply.reply_outcome", process, new_command(), []
    yield "reply.reply_data", process, reply.model_copy(update={"reply_data": nan}), [new_command()]
    yield "reply", process, reply.model_copy(update={"received_at": datetime(2026, 3, 1)}), []  # noqa: DTZ001
    yield "reply.command_id", process, reply.model_copy(update={"command_id": str(uuid4())}), []
    yield "sent[0].command_type", process, reply, [new_command(command_type="")]
    yield "sent[1].command_type", process, reply, [new_command(), new_command(command_type="")]
    yield "sent[1].command_data", process, None, [new_command(), new_command(command_data=nan), new_command()]
    yield "sent[1].reply_outcome", process, None, [new_command(), new_command(received_at=NOON)]
    yield "sent[1].reply_data", process, None, [new_command(), new_command(reply_outcome="SUCCESS", reply_data=nan)]
    yield "sent[2]", process, None, [new_command(), new_command(), new_command(step_name="x" * 256)]
    yield "sent[1]", process, None, [new_command(), new_command(step_name="a\0b")]
    yield "sent[1].command_id", process, reply, [twice, twice]
    yield "sent[2].command_id", process, None, [twice, new_command(), same_id]


async def test_what_cannot_be_stored_is_refused_before_any_sql() -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")  # nothing answers there
    repository = PostgresProcessRepository(engine)
    for fault, process, reply, sent in invalid_steps():
        given = process.model_copy(deep=True)
        with pytest.raises(InvalidInputError) as caught:
            await repository.advance(process, reply=reply, sent=sent)
        assert caught.value.field == fault
        assert repr(process) == repr(given)  # NaN is not itself
    await engine.dispose()


async def test_a_step_that_cannot_be_stored_leaves_everything_as_it_was(waiting: Waiting) -> None:
    statements: list[object] = []
    before = await waiting.everything()
    event.listen(waiting.engine.sync_engine, "before_cursor_execute", lambda *context: statements.append(context))
    for invalid in ([new_command(), new_command(command_type="")], [waiting.asked, waiting.asked]):
        with pytest.raises(InvalidInputError):
            await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply_to(waiting.asked), sent=invalid)
    assert statements == []
    assert await waiting.everything() == before


def at_another_time(entry: ProcessAuditEntry) -> ProcessAuditEntry:
    return entry.model_copy(
        update={"sent_at": entry.sent_at + LATER, "received_at": entry.received_at and NOON + LATER}
    )


@pytest.mark.parametrize(("with_reply", "names"), [(True, ["ship", "charge"]), (True, []), (False, ["charge"])])
async def test_a_step_that_was_taken_already_changes_nothing(
    waiting: Waiting, *, with_reply: bool, names: list[str]
) -> None:
    reply = reply_to(waiting.asked, reply_data={"small": 1e-7}) if with_reply else None
    sent = [new_command(name, command_data={"small": 1e-7}) for name in names]
    process, again = waiting.next(state={"small": 1e-7}), waiting.next(state={"small": 1e-7})
    again.completed_at = NOON + LATER  # who ends a process "now" ends it later in the redelivery
    assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    for entry in sent:  # their replies come in the meantime, which do not change the process
        await waiting.repository.update_step_reply(*waiting.key, entry.command_id, reply_to(entry), waiting.conn)
    before = await waiting.everything()
    assert not await waiting.repository.advance(
        again,
        waiting.conn,
        reply=None if reply is None else at_another_time(reply),
        sent=[at_another_time(entry) for entry in sent],
    )
    assert await waiting.everything() == before
    assert (again.version, again.updated_at) == (process.version, process.updated_at)
    await waiting.repository.update(again, waiting.conn)  # it has what its row has
    assert again.version == 4


@pytest.mark.parametrize("is_read_anew", [False, True], ids=["the same object", "read anew"])
async def test_a_redelivery_whose_process_was_decided_again(waiting: Waiting, *, is_read_anew: bool) -> None:
    """The ordinary one: the handler reads the process, decides, and makes the same commands."""
    reply, sent = reply_to(waiting.asked), [new_command(), new_command("ship")]
    process = waiting.next(state={"count": 1})
    assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    before = await waiting.everything()
    again = await waiting.repository.get_by_id(*waiting.key, waiting.conn) if is_read_anew else process
    assert again is not None
    again.state["count"] = 2  # it counts what was counted before
    assert not await waiting.repository.advance(again, waiting.conn, reply=reply, sent=sent)
    with pytest.raises(ConcurrentUpdateError):
        await waiting.repository.update(again, waiting.conn)
    assert await waiting.everything() == before


async def test_a_step_without_reply_and_commands_is_no_redelivery(waiting: Waiting) -> None:
    """It has nothing by which it could be recognised: two that count up at once are two steps."""
    first, second = [await waiting.repository.get_by_id(*waiting.key, waiting.conn) for _ in range(2)]
    assert first is not None
    assert second is not None
    assert await waiting.repository.advance(first, waiting.conn)
    with pytest.raises(ConcurrentUpdateError):
        await waiting.repository.advance(second, waiting.conn)


async def test_a_step_that_was_taken_already_in_part_only(waiting: Waiting) -> None:
    reply, sent = reply_to(waiting.asked), [new_command(), new_command("ship")]
    await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=sent)
    before = await waiting.everything()
    first, second = sent
    others: list[tuple[ProcessAuditEntry, list[ProcessAuditEntry], type[Exception]]] = [
        (reply_to(waiting.asked, reply_outcome=ReplyOutcome.FAILED), sent, ReplyConflictError),
        (reply_to(waiting.asked, reply_data=None), sent, ReplyConflictError),
        (reply_to(new_command("never logged")), sent, StepNotFoundError),
        (reply, [first, second.model_copy(update={"step_name": "other"})], ReplyConflictError),
        (reply, [first.model_copy(update={"command_type": "Other"}), second], ReplyConflictError),
        (reply, [first, second.model_copy(update={"command_data": {"amount": 1}})], ReplyConflictError),
        (reply, [first, second, new_command("one more")], ReplyConflictError),
        (reply, [new_command("another")], ReplyConflictError),
    ]
    for other_reply, other_sent, error in others:
        stale = waiting.next()
        with pytest.raises(ConcurrentUpdateError) as caught:
            await waiting.repository.advance(stale, waiting.conn, reply=other_reply, sent=other_sent)
        assert (caught.value.expected_version, caught.value.actual_version) == (2, 3)
        anew = await waiting.repository.get_by_id(*waiting.key, waiting.conn)
        assert anew is not None
        with pytest.raises(error) as refused:
            await waiting.repository.advance(anew, waiting.conn, reply=other_reply, sent=other_sent)
        if other_reply is reply:
            assert getattr(refused.value, "is_same", None) is True
            assert str(next(each for each in other_sent if each not in sent).command_id) in str(refused.value)
    assert await waiting.everything() == before


async def test_a_step_that_was_taken_before_the_last_one(waiting: Waiting) -> None:
    process, again = waiting.next(), waiting.next()
    reply, sent = reply_to(waiting.asked), [new_command(), new_command("ship")]
    await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    process.state = {"total": 15}
    await waiting.repository.update(process, waiting.conn)
    before = await waiting.everything()
    assert not await waiting.repository.advance(again, waiting.conn, reply=reply, sent=sent)
    with pytest.raises(ConcurrentUpdateError) as caught:
        await waiting.repository.update(again, waiting.conn)
    assert (caught.value.expected_version, caught.value.actual_version) == (2, 4)
    assert await waiting.everything() == before


async def test_an_update_of_the_same_content_is_not_the_step(waiting: Waiting) -> None:
    await waiting.repository.update(waiting.next(), waiting.conn)
    before = await waiting.everything()
    for reply, sent in (
        (reply_to(waiting.asked), []),
        (None, [new_command()]),
        (reply_to(waiting.asked), [new_command()]),
    ):
        with pytest.raises(ConcurrentUpdateError) as caught:
            await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=sent)
        assert (caught.value.expected_version, caught.value.actual_version) == (2, 3)
    assert await waiting.everything() == before


async def test_one_step_after_another_from_one_object(waiting: Waiting) -> None:
    process, asked = waiting.next(), waiting.asked
    expected: list[ProcessAuditEntry] = [waiting.done]
    for number in range(3):
        reply, sent = reply_to(asked), new_command(f"step {number}")
        process.state = {"number": number}
        await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
        expected.append(answered(asked, reply))
        asked = sent
        assert await waiting.repository.get_by_id(*waiting.key, waiting.conn) == process
    assert process.version == 5
    assert await waiting.trail() == [*expected, asked]


async def test_what_is_rolled_back_was_not_taken(committed: Waiting) -> None:
    before = await committed.everything()
    async with committed.engine.connect() as conn:
        for sent in ([], [new_command()], [new_command(), new_command("ship")]):
            await committed.repository.advance(committed.next(), conn, reply=reply_to(committed.asked), sent=sent)
            await conn.rollback()
    assert await committed.everything() == before


@pytest.mark.parametrize("on_connections", [False, True], ids=["without a connection", "callers' connections"])
async def test_of_four_steps_from_one_version_at_once_exactly_one_is_taken(
    committed: Waiting, isolation_level: str, *, on_connections: bool
) -> None:
    reply = reply_to(committed.asked)
    steps = [
        (committed.next(current_step=f"racer {number}"), [new_command(f"of {number}") for _ in range(1 + number % 3)])
        for number in range(RACERS)
    ]

    async def take(process: ProcessMetadata, sent: list[ProcessAuditEntry]) -> None:
        if not on_connections:
            await committed.repository.advance(process, reply=reply, sent=sent)
            return
        async with committed.engine.begin() as conn:
            await committed.repository.advance(process, conn, reply=reply, sent=sent)

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(take(*step) for step in steps), return_exceptions=True)
    [winner] = [number for number, result in enumerate(results) if result is None]
    process, sent = steps[winner]
    assert await committed.repository.get_by_id(*committed.key) == process
    assert process.version == 3
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]
    for result, (loser, _) in zip(results, steps, strict=True):
        if result is not None:
            assert isinstance(result, ConcurrentUpdateError)
            assert result.expected_version == loser.version == 2
            if isolation_level == "READ COMMITTED" or not on_connections:
                assert result.actual_version == 3


Call = Callable[[AsyncConnection], Awaitable[object]]


@dataclass
class Meeting:
    """Two transactions, of which the second runs into what the first has not committed yet."""

    waiting: Waiting
    onlooker: AsyncEngine

    async def of(
        self,
        first: Call,
        second: Callable[[AsyncConnection | None], Awaitable[object]],
        *,
        on_connection: bool = False,
        commit: bool = True,
        then: Call | None = None,
    ) -> object:
        """Return what became of the second: `None`, or an error. `then` is what the first does once it is waited for.

        On a connection, looks whether its transaction is alive where it has to be, and ends it.
        """
        async with asyncio.timeout(60), AsyncExitStack() as connections:
            holder = await connections.enter_async_context(self.waiting.engine.connect())
            conn = None
            if on_connection:
                conn = await connections.enter_async_context(self.waiting.engine.connect())
            await first(holder)
            task = asyncio.ensure_future(second(conn))
            await is_waiting_for_a_lock(self.onlooker)
            if then is not None:
                await then(holder)
            await (holder.commit() if commit else holder.rollback())
            [result] = await asyncio.gather(task, return_exceptions=True)
            if conn is not None:
                await self._end(conn, result)
        return result

    async def _end(self, conn: AsyncConnection, result: object) -> None:
        if isinstance(result, ConcurrentUpdateError) and result.actual_version is None:
            assert result.retryable
            assert isinstance(result.__cause__, DBAPIError)
            await conn.rollback()  # it has to be, whether it was aborted, or only the savepoint before several commands
        else:
            assert await self.waiting.repository.get_by_id(*self.waiting.key, conn) is not None
            await conn.commit()


@pytest.fixture
def meeting(committed: Waiting, onlooker: AsyncEngine) -> Meeting:
    return Meeting(committed, onlooker)


CONNECTED = pytest.mark.parametrize("on_connection", [False, True], ids=["without a connection", "caller's connection"])


@CONNECTED
@pytest.mark.parametrize(("with_reply", "count"), [(False, 0), (True, 0), (False, 1), (True, 2)])
async def test_the_second_of_two_steps_from_one_version(
    committed: Waiting, meeting: Meeting, isolation_level: str, count: int, *, with_reply: bool, on_connection: bool
) -> None:
    """They have nothing in common but the process."""
    winner, loser, won = committed.next(), committed.next(current_step="loser"), new_command("of the winner")
    reply = reply_to(committed.asked) if with_reply else None
    lost = [new_command("of the loser") for _ in range(count)]
    result = await meeting.of(
        lambda conn: committed.repository.advance(winner, conn, sent=won),
        lambda conn: committed.repository.advance(loser, conn, reply=reply, sent=lost),
        on_connection=on_connection,
    )
    assert isinstance(result, ConcurrentUpdateError)
    seen = isolation_level == "READ COMMITTED" or not on_connection
    assert (result.expected_version, result.actual_version) == (2, 3 if seen else None)
    assert loser == committed.next(current_step="loser")
    assert await committed.repository.get_by_id(*committed.key) == winner
    assert await committed.trail() == [committed.done, committed.asked, won]


@CONNECTED
async def test_the_same_step_delivered_twice_at_once(
    committed: Waiting, meeting: Meeting, isolation_level: str, *, on_connection: bool
) -> None:
    first, second = committed.next(), committed.next()
    reply, sent = reply_to(committed.asked), [new_command(), new_command("ship")]
    result = await meeting.of(
        lambda conn: committed.repository.advance(first, conn, reply=reply, sent=sent),
        lambda conn: committed.repository.advance(second, conn, reply=reply, sent=sent),
        on_connection=on_connection,
    )
    if isolation_level == "READ COMMITTED" or not on_connection:
        assert result is False
        assert second == first
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert result.actual_version is None
    assert await committed.repository.get_by_id(*committed.key) == first
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]


@pytest.mark.parametrize(("count", "on_connection"), [(1, False), (2, True)])
async def test_a_step_that_waited_for_one_that_is_rolled_back(
    committed: Waiting, meeting: Meeting, count: int, *, on_connection: bool
) -> None:
    process, reply = committed.next(), reply_to(committed.asked)
    sent = [new_command(f"step {number}") for number in range(count)]
    undone = committed.next(current_step="undone")
    result = await meeting.of(
        lambda conn: committed.repository.advance(undone, conn, reply=reply, sent=sent),
        lambda conn: committed.repository.advance(process, conn, reply=reply, sent=sent),
        on_connection=on_connection,
        commit=False,
    )
    assert result is True
    assert await committed.repository.get_by_id(*committed.key) == process
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]


@CONNECTED
@pytest.mark.parametrize("count", [1, 2])
async def test_a_command_that_another_transaction_is_logging_at_this_moment(
    committed: Waiting, meeting: Meeting, isolation_level: str, count: int, *, on_connection: bool
) -> None:
    """Of several, it is the last: those before it are written already when the statement meets it."""
    process = committed.next()
    sent = [new_command(f"step {number}") for number in range(count)]
    first = sent[-1].model_copy(update={"sent_at": NOON - LATER})
    before = await committed.everything()
    result = await meeting.of(
        lambda conn: committed.repository.log_step(*committed.key, first, conn),
        lambda conn: committed.repository.advance(process, conn, reply=reply_to(committed.asked), sent=iter(sent)),
        on_connection=on_connection,
    )
    if isolation_level == "READ COMMITTED" or not on_connection:
        assert isinstance(result, StepAlreadyLoggedError)
        assert (result.recorded, result.given) == (first, sent[-1])
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert (result.expected_version, result.actual_version) == (2, None)
    assert process == committed.next()
    assert await committed.trail() == [first, committed.done, committed.asked]
    assert [row for row in await committed.everything() if str(first.command_id) not in row["each"]] == before


@pytest.mark.parametrize(("count", "on_connection"), [(1, False), (2, True)])
async def test_a_command_that_another_transaction_was_logging_and_did_not(
    committed: Waiting, meeting: Meeting, count: int, *, on_connection: bool
) -> None:
    process, reply = committed.next(), reply_to(committed.asked)
    sent = [new_command(f"step {number}") for number in range(count)]
    result = await meeting.of(
        lambda conn: committed.repository.log_step(*committed.key, sent[-1], conn),
        lambda conn: committed.repository.advance(process, conn, reply=reply, sent=iter(sent)),
        on_connection=on_connection,
        commit=False,
    )
    assert result is True
    assert await committed.repository.get_by_id(*committed.key) == process
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), *sent]


@CONNECTED
@pytest.mark.parametrize("same", [True, False], ids=["the same reply", "another reply"])
async def test_a_reply_that_another_transaction_is_recording_at_this_moment(
    committed: Waiting, meeting: Meeting, isolation_level: str, *, same: bool, on_connection: bool
) -> None:
    """Its process is not changed by that, so the version is as it was: only the step tells."""
    process, recorded = committed.next(), reply_to(committed.asked)
    given = recorded if same else reply_to(committed.asked, reply_outcome=ReplyOutcome.FAILED)
    result = await meeting.of(
        lambda conn: committed.repository.update_step_reply(*committed.key, recorded.command_id, recorded, conn),
        lambda conn: committed.repository.advance(
            process, conn, reply=given, sent=[new_command(), new_command("ship")]
        ),
        on_connection=on_connection,
    )
    if isolation_level == "READ COMMITTED" or not on_connection:
        assert isinstance(result, ReplyConflictError)
        assert (result.recorded, result.given) == (answered(committed.asked, recorded), given)
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert (result.expected_version, result.actual_version) == (2, None)
    assert process == committed.next()
    assert await committed.repository.get_by_id(*committed.key) == committed.process
    assert await committed.trail() == [committed.done, answered(committed.asked, recorded)]


async def test_a_reply_that_another_transaction_was_recording_and_did_not(committed: Waiting, meeting: Meeting) -> None:
    process, reply, sent = committed.next(), reply_to(committed.asked), new_command()
    undone = reply_to(committed.asked, reply_outcome=ReplyOutcome.FAILED)
    result = await meeting.of(
        lambda conn: committed.repository.update_step_reply(*committed.key, undone.command_id, undone, conn),
        lambda conn: committed.repository.advance(process, conn, reply=reply, sent=sent),
        commit=False,
    )
    assert result is True
    assert await committed.repository.get_by_id(*committed.key) == process
    assert await committed.trail() == [committed.done, answered(committed.asked, reply), sent]


@pytest.mark.parametrize("count", [0, 1])
async def test_it_locks_in_the_order_of_the_single_methods(
    committed: Waiting, meeting: Meeting, isolation_level: str, count: int
) -> None:
    """Another worker takes the step with them: it has recorded the reply, and updates the process last."""
    winner, loser, reply = committed.next(), committed.next(current_step="loser"), reply_to(committed.asked)
    result = await meeting.of(
        lambda conn: committed.repository.update_step_reply(*committed.key, reply.command_id, reply, conn),
        lambda conn: committed.repository.advance(loser, conn, reply=reply, sent=[new_command() for _ in range(count)]),
        on_connection=True,  # without one, it would get over a deadlock
        then=lambda conn: committed.repository.update(winner, conn),
    )
    if isolation_level == "READ COMMITTED" and count == 0:
        assert result is False  # the reply is all that there is to recognise the step by
    else:
        assert isinstance(result, ConcurrentUpdateError)
        assert result.actual_version == (3 if isolation_level == "READ COMMITTED" else None)
    assert await committed.repository.get_by_id(*committed.key) == winner
    assert await committed.trail() == [committed.done, answered(committed.asked, reply)]


async def test_steps_can_be_logged_while_another_one_is_being_taken(committed: Waiting) -> None:
    logged = new_command("beside")
    async with committed.engine.connect() as conn:
        await committed.repository.advance(committed.next(), conn, reply=reply_to(committed.asked), sent=new_command())
        async with asyncio.timeout(30):
            await committed.repository.log_step(*committed.key, logged)
        await conn.rollback()  # under SERIALIZABLE, a commit could fail
    assert await committed.trail() == [committed.done, committed.asked, logged]


@pytest.mark.parametrize(("what", "count"), [("version", 1), ("reply", 2), ("command", 1), ("command", 2)])
async def test_what_was_committed_since_the_callers_transaction_began(
    committed: Waiting, isolation_level: str, what: str, count: int
) -> None:
    repository, reply = committed.repository, reply_to(committed.asked)
    sent = [new_command(f"step {number}") for number in range(count)]
    process, given = committed.next(), committed.next()
    async with committed.engine.connect() as conn:
        await repository.get_by_id(*committed.key, conn)  # the snapshot of the higher levels is taken here
        if what == "version":
            await repository.update(committed.process)
        elif what == "reply":
            await repository.update_step_reply(*committed.key, reply.command_id, reply)
        else:
            await repository.log_step(*committed.key, sent[-1])
        before = await committed.everything()
        with pytest.raises(ProcessRepositoryError) as caught:
            await repository.advance(process, conn, reply=reply, sent=sent)
        if isolation_level == "READ COMMITTED":
            errors = {"version": ConcurrentUpdateError, "reply": ReplyConflictError, "command": StepAlreadyLoggedError}
            assert type(caught.value) is errors[what]
            assert await repository.get_by_id(*committed.key, conn) is not None  # the transaction is alive
        else:
            assert isinstance(caught.value, ConcurrentUpdateError)
            assert (caught.value.expected_version, caught.value.actual_version) == (2, None)
        await conn.rollback()
    assert process == given
    assert await committed.everything() == before


async def test_workers_that_take_steps_of_one_process_lose_none(committed: Waiting) -> None:
    """Each reads, decides on the next command from what it read, and advances: on its connection, and without one."""
    repository, rounds = committed.repository, 5

    async def work(worker: int) -> None:
        for number in range(rounds):
            sent = [new_command(f"{worker}.{number}.{each}") for each in range(1 + number % 2)]
            while True:
                try:
                    if worker % 2:
                        await take(sent, None)
                    else:
                        async with committed.engine.begin() as conn:
                            await take(sent, conn)
                except (ProcessRepositoryError, DBAPIError) as error:
                    assert_can_be_run_again(error)
                else:
                    break

    async def take(sent: list[ProcessAuditEntry], conn: AsyncConnection | None) -> None:
        found = await repository.get_by_id(*committed.key, conn)
        assert found is not None
        names = found.state.setdefault("names", [])
        assert isinstance(names, list)
        names.extend(entry.step_name for entry in sent)
        await repository.advance(found, conn, sent=sent)

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(worker) for worker in range(RACERS)))
    found = await repository.get_by_id(*committed.key)
    assert found is not None
    assert found.version == 2 + RACERS * rounds
    in_order = await committed.select("SELECT step_name FROM commandbus.process_audit ORDER BY id")
    assert [row["step_name"] for row in in_order[2:]] == found.state["names"]


@pytest.mark.parametrize("what", ["command", "reply"])
async def test_what_was_in_the_way_of_a_step_and_goes_before_it_is_looked_for(
    committed: Waiting, database_url: str, what: str
) -> None:
    remedy = {
        "command": "DELETE FROM commandbus.process_audit WHERE step_name = 'check'",
        "reply": "UPDATE commandbus.process_audit SET reply_outcome = NULL, reply_data = NULL, received_at = NULL",
    }[what]
    process, reply, sent = committed.next(), None, [new_command("in the way", command_id=committed.done.command_id)]
    if what == "reply":
        reply, sent = reply_to(committed.done, reply_outcome=ReplyOutcome.FAILED), [new_command()]
    seen: list[str] = []

    def clear_the_way(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)
        if len(seen) == 2:  # before what is in the way is looked for
            execute(database_url, remedy)

    # A transaction that has its snapshot already would still see the obstacle.
    own = PostgresProcessRepository(committed.engine.execution_options(isolation_level="READ COMMITTED"))
    event.listen(committed.engine.sync_engine, "before_cursor_execute", clear_the_way)
    await own.advance(process, reply=reply, sent=sent)
    event.remove(committed.engine.sync_engine, "before_cursor_execute", clear_the_way)
    assert seen[-1] == seen[0]
    assert process.version == 3
    assert await committed.repository.get_by_id(*committed.key) == process
    trail = {entry.command_id: entry for entry in await committed.trail()}
    if reply is not None:
        assert trail[reply.command_id] == answered(committed.done, reply)
    assert {entry.command_id: trail[entry.command_id] for entry in sent} == {entry.command_id: entry for entry in sent}


@pytest.mark.parametrize("count", [1, 2])
async def test_a_savepoint_of_the_callers_survives_a_lock_timeout(committed: Waiting, count: int) -> None:
    """As with `update`: rolled back to the savepoint, the caller's transaction goes on."""
    repository, kept = committed.repository, new_process()
    sent = [new_command(f"step {number}") for number in range(count)]
    async with committed.engine.connect() as holder, committed.engine.begin() as conn:
        await repository.get_by_id(*committed.key, holder, for_update=True)
        await conn.execute(text("SET LOCAL lock_timeout = '10ms'"))
        await repository.save(kept, conn)
        with pytest.raises(ProcessLockedError):
            async with conn.begin_nested():
                await repository.advance(committed.next(), conn, sent=sent)
        await holder.rollback()
        async with conn.begin_nested():
            await repository.advance(committed.next(), conn, sent=sent)
    assert await repository.get_by_id(DOMAIN, kept.process_id) == kept
    assert await committed.trail() == [committed.done, committed.asked, *sent]


SWALLOWED = {
    "commands": "INSERT ON commandbus.process_audit FOR EACH ROW",
    "one command": "INSERT ON commandbus.process_audit FOR EACH ROW WHEN (NEW.step_name = 'charge')",
    "reply": "UPDATE ON commandbus.process_audit FOR EACH ROW",
    "process": "UPDATE ON commandbus.process FOR EACH ROW",
}


@asynccontextmanager
async def swallowing(administrator: AsyncEngine, what: str) -> AsyncGenerator[None]:
    """Have a trigger swallow a part of what is written."""
    async with administrator.begin() as connection:
        await connection.execute(
            text("CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$")
        )
        await connection.execute(text(f"CREATE TRIGGER swallow BEFORE {SWALLOWED[what]} EXECUTE FUNCTION swallow()"))
    yield
    async with administrator.begin() as connection:
        await connection.execute(text("DROP FUNCTION swallow CASCADE"))


async def assert_nothing_is_kept(waiting: Waiting, what: str) -> None:
    before = await waiting.everything()
    for with_reply, names in SHAPES.values():
        is_concerned = {"reply": with_reply, "process": True}.get(what, bool(names))
        if not is_concerned:
            continue
        reply, sent = reply_to(waiting.asked) if with_reply else None, [new_command(name) for name in names]
        process, given = waiting.next(), waiting.next()
        savepoint = nullcontext() if waiting.conn is None else waiting.conn.begin_nested()
        with pytest.raises(NothingWrittenError) as caught:
            async with savepoint:
                await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
        assert (caught.value.domain, caught.value.process_id) == waiting.key
        assert process == given
        assert await waiting.everything() == before


async def test_where_a_trigger_swallows_one_part_nothing_of_the_rest_is_kept(
    committed: Waiting, administrator: AsyncEngine
) -> None:
    for what in SWALLOWED:
        async with swallowing(administrator, what):
            await assert_nothing_is_kept(committed, what)


async def test_where_a_trigger_swallows_one_part_the_callers_savepoint_undoes_the_rest(
    committed: Waiting, administrator: AsyncEngine
) -> None:
    for what in SWALLOWED:
        async with swallowing(administrator, what), committed.engine.begin() as conn:
            await assert_nothing_is_kept(dataclasses.replace(committed, conn=conn), what)
