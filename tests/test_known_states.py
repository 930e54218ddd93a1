"""A state that did not change is not sent again: when it is left out, when it must not be, and that nobody sees how."""

import copy
import json
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    _known_states,
)
from commandbus_process.models import KNOWN_STATE
from tests.conftest import new_process
from tests.databases import Server, as_role, async_url, execute, fresh_database

Repository = PostgresProcessRepository[JsonObject]

STATE: JsonObject = {
    "one": 1,
    "one as a float": 1.0,
    "zero": 0,
    "yes": True,
    "nothing": None,
    "text": "1",
    "tenth": 0.1,
    "large": 10**30,
    "list": [1, 2, {"deep": [0, "é"]}],
    "object": {"a": {}, "b": []},
}


@dataclass
class Database:
    """A database, and the states that were sent to it."""

    administrator_url: str
    engine: AsyncEngine
    repository: Repository
    sent: list[str | None]

    async def update(
        self, process: ProcessMetadata[Any], repository: PostgresProcessRepository[Any] | None = None
    ) -> str | None:
        """Update a process, and return the state that was sent for it."""
        return await self.state_sent_by((repository or self.repository).update(process))

    async def state_sent_by(self, call: Awaitable[None]) -> str | None:
        self.sent.clear()
        await call
        [state] = self.sent
        return state

    async def stored(self, process: ProcessMetadata[Any]) -> str:
        """Read a state with SQL of the test's own, as the text that the server has for it."""
        statement = text("SELECT state::text FROM commandbus.process WHERE domain = :domain AND process_id = :id")
        async with self.engine.connect() as connection:
            result = await connection.execute(statement, {"domain": process.domain, "id": process.process_id})
            found: str = result.scalar_one()
            return found

    def remove(self, process: ProcessMetadata[Any]) -> None:
        """Delete a process, which an application may not."""
        execute(self.administrator_url, f"DELETE FROM commandbus.process WHERE process_id = '{process.process_id}'")

    async def write(self, process: ProcessMetadata[Any], state: str) -> None:
        """Write a state with SQL of the test's own, and not the version."""
        statement = text("UPDATE commandbus.process SET state = CAST(:state AS jsonb) WHERE process_id = :id")
        async with self.engine.begin() as connection:
            await connection.execute(statement, {"state": state, "id": process.process_id})


async def open_database(url: str, application: str) -> AsyncIterator[Database]:
    engine = create_async_engine(async_url(as_role(url, application)))
    sent: list[str | None] = []

    def note(_connection: object, _cursor: object, _statement: str, parameters: dict[str, Any], *_: object) -> None:
        if "state" in parameters:
            sent.append(parameters["state"])

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield Database(url, engine, PostgresProcessRepository(engine), sent)
    await engine.dispose()


@pytest.fixture(autouse=True)
def states_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states here are short, so that a reader sees them whole; how long they must be has a test of its own."""
    monkeypatch.setattr(_known_states, "SHORTEST", 0)


@pytest.fixture
async def database(shared_url: str, newest_server: Server) -> AsyncIterator[Database]:
    async for each in open_database(shared_url, newest_server.application):
        yield each


@pytest.fixture(scope="module")
def elsewhere_url(newest_server: Server) -> Iterator[str]:
    with fresh_database(newest_server.url, newest_server.template) as url:
        yield url


@pytest.fixture
async def elsewhere(elsewhere_url: str, newest_server: Server) -> AsyncIterator[Database]:
    """Another database."""
    async for each in open_database(elsewhere_url, newest_server.application):
        yield each


def fresh_process() -> ProcessMetadata:
    """A process in a domain of its own."""
    return new_process().model_copy(update={"domain": uuid4().hex, "state": copy.deepcopy(STATE)})


def as_text(state: object) -> str:
    """What tells apart what Python holds for equal, and does not tell the order of keys."""
    return json.dumps(state, sort_keys=True)


async def after_save(database: Database, process: ProcessMetadata) -> ProcessMetadata:
    await database.repository.save(process)
    return process


async def after_update(database: Database, process: ProcessMetadata) -> ProcessMetadata:
    await database.repository.save(process.model_copy(update={"state": {}}))
    process.version = 1
    await database.repository.update(process)
    return process


async def after_advance(database: Database, process: ProcessMetadata) -> ProcessMetadata:
    await database.repository.save(process.model_copy(update={"state": {}}))
    process.version = 1
    await database.repository.advance(process, sent=new_command())
    return process


async def after_an_advance_that_was_taken_already(database: Database, process: ProcessMetadata) -> ProcessMetadata:
    await database.repository.save(process.model_copy(update={"state": {}}))
    process.version, sent = 1, new_command()
    await database.repository.advance(process.model_copy(deep=True), sent=sent)
    await database.repository.advance(process, sent=sent)
    return process


async def after_get_by_id(database: Database, process: ProcessMetadata) -> ProcessMetadata:
    await database.repository.save(process)
    found = await database.repository.get_by_id(process.domain, process.process_id)
    assert found is not None
    return found


async def after_find_by_status(database: Database, process: ProcessMetadata) -> ProcessMetadata:
    other = process.model_copy(deep=True, update={"process_id": uuid4(), "state": {"other": True}})
    for each in (process, other):
        await database.repository.save(each)
    found = await database.repository.find_by_status(process.domain, [ProcessStatus.PENDING])
    return {each.process_id: each for each in found}[process.process_id]


Known: TypeAlias = Callable[[Database, ProcessMetadata], Awaitable[ProcessMetadata]]
KNOWN: list[Known] = [
    after_save,
    after_update,
    after_advance,
    after_an_advance_that_was_taken_already,
    after_get_by_id,
    after_find_by_status,
]


def name_of(function: Callable[..., object]) -> str:
    return function.__name__


def new_command() -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name="charge", command_id=uuid4(), command_type="ChargeCard")


@pytest.mark.parametrize("known", KNOWN, ids=name_of)
async def test_an_unchanged_state_is_not_sent_and_stays(database: Database, known: Known) -> None:
    process = await known(database, fresh_process())
    before = await database.stored(process)
    for number in range(3):  # after the first, it is the update before that tells
        process.current_step = f"step {number}"
        assert await database.update(process) is None
    process.state = dict(reversed(process.state.items()))
    assert await database.update(process) is None
    assert await database.state_sent_by(database.repository.advance(process, sent=new_command())) is None
    assert await database.stored(process) == before
    assert await database.repository.get_by_id(process.domain, process.process_id) == process


@pytest.mark.parametrize("known", KNOWN, ids=name_of)
async def test_a_short_state_is_sent_unchanged(
    database: Database, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which costs less than to find out that it is the same; a long one is left out."""
    monkeypatch.undo()
    for length, is_sent in ((1_900, True), (2_000, False)):
        process = fresh_process()
        process.state = {"text": "x" * length}
        process = await known(database, process)
        assert (await database.update(process) is not None) == is_sent


@pytest.mark.parametrize("known", KNOWN, ids=name_of)
async def test_a_changed_state_is_sent(database: Database, known: Known) -> None:
    process = await known(database, fresh_process())
    process.state["one"] = 2
    await assert_is_sent(database, process, database.repository.update(process))
    process.state["one"] = 1
    await assert_is_sent(database, process, database.repository.advance(process, sent=new_command()))
    process.state["one"] = 2
    await assert_is_sent(database, process, database.repository.update(process))


async def assert_is_sent(database: Database, process: ProcessMetadata, call: Awaitable[None]) -> None:
    sent = await database.state_sent_by(call)
    assert sent is not None
    assert as_text(json.loads(sent)) == as_text(process.state)
    assert as_text(json.loads(await database.stored(process))) == as_text(process.state)
    assert await database.repository.get_by_id(process.domain, process.process_id) == process


def deep(state: Any) -> list[Any]:
    found: list[Any] = state["list"][2]["deep"]
    return found


CHANGES: dict[str, Callable[[Any], object]] = {
    "1 becomes True": lambda state: state.update(one=True),
    "1 becomes 1.0": lambda state: state.update(one=1.0),
    "1.0 becomes 1": lambda state: state.update({"one as a float": 1}),
    "True becomes 1": lambda state: state.update(yes=1),
    "0 becomes False": lambda state: state.update(zero=False),
    "0 becomes None": lambda state: state.update(zero=None),
    "text becomes a number": lambda state: state.update(text=1),
    "a number becomes text": lambda state: state.update(one="1"),
    "the next float": lambda state: state.update(tenth=0.1 + 2**-56),
    "the next large number": lambda state: state.update(large=10**30 + 1),
    "a key with None is added": lambda state: state.update(more=None),
    "a key with None is left out": lambda state: state.pop("nothing"),
    "a key is renamed": lambda state: state.update(renamed=state.pop("one")),
    "a value moves to another key": lambda state: state.update(one=0, zero=1),
    "in place, deep": lambda state: deep(state).append(None),
    "in place, deep, False for 0": lambda state: deep(state).__setitem__(slice(1), [False]),
    "in place, deep, another text": lambda state: deep(state).__setitem__(slice(1, 2), ["e\u0301"]),
    "the order of a list": lambda state: state["list"].reverse(),
    "a list gets shorter": lambda state: state["list"].pop(),
    "an empty object becomes a list": lambda state: state["object"].update(a=[]),
    "an empty list becomes an object": lambda state: state["object"].update(b={}),
    "everything goes": lambda state: state.clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_every_change_is_sent(database: Database, change: Callable[[Any], object]) -> None:
    for known in (after_save, after_get_by_id):
        process = await known(database, fresh_process())
        change(process.state)
        await assert_is_sent(database, process, database.repository.update(process))
        process.state = copy.deepcopy(STATE)
        await assert_is_sent(database, process, database.repository.advance(process))


async def test_what_other_software_stores_in_its_own_form_stays_in_it(database: Database) -> None:
    process = fresh_process()
    await database.repository.save(process)
    await database.write(process, '{"price": 1.10, "long": 0.10000000000000000000000000000001}')
    found = await database.repository.get_by_id(process.domain, process.process_id)
    assert found is not None
    assert await database.update(found) is None
    assert await database.stored(process) == '{"long": 0.10000000000000000000000000000001, "price": 1.10}'


@pytest.mark.parametrize("known", KNOWN, ids=name_of)
async def test_without_a_version_the_state_is_sent(database: Database, known: Known) -> None:
    """The row may be at any version, with any state."""
    process = await known(database, fresh_process())
    await database.write(process, "{}")
    process.version = None
    await assert_is_sent(database, process, database.repository.update(process))


async def test_a_version_that_was_assigned_is_not_the_one_that_was_read(database: Database) -> None:
    process = await after_get_by_id(database, fresh_process())
    other = await database.repository.get_by_id(process.domain, process.process_id)
    assert other is not None
    other.state = {"by": "another"}
    await database.repository.update(other)
    process.version = other.version
    await assert_is_sent(database, process, database.repository.update(process))


@pytest.mark.parametrize("key", ["process_id", "domain"])
async def test_the_state_of_one_process_is_sent_to_another(database: Database, key: str) -> None:
    process = await after_get_by_id(database, fresh_process())
    other = fresh_process().model_copy(update={"domain": process.domain, "process_id": process.process_id})
    setattr(other, key, uuid4() if key == "process_id" else uuid4().hex)
    other.state = {"other": True}
    await database.repository.save(other)
    setattr(process, key, getattr(other, key))
    sent = await database.update(process)
    assert sent is not None
    assert as_text(json.loads(await database.stored(other))) == as_text(STATE)


COPIES: dict[str, Callable[[ProcessMetadata], ProcessMetadata]] = {
    "model_copy": lambda process: process.model_copy(),
    "model_copy, deep": lambda process: process.model_copy(deep=True),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda process: pickle.loads(pickle.dumps(process)),  # noqa: S301 - our own
    "fields": lambda process: ProcessMetadata(**dict(process)),
    "model_dump": lambda process: ProcessMetadata(**process.model_dump()),
    "JSON": lambda process: ProcessMetadata[JsonObject].model_validate_json(process.model_dump_json()),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
async def test_a_copy_knows_nothing_and_is_sent(
    database: Database, copied: Callable[[ProcessMetadata], ProcessMetadata]
) -> None:
    process = await after_get_by_id(database, fresh_process())
    made = copied(process)
    assert getattr(process, KNOWN_STATE) is not None
    assert getattr(made, KNOWN_STATE, None) is None
    assert dict(made) == dict(process)
    await assert_is_sent(database, made, database.repository.update(made))


@pytest.mark.parametrize("known", KNOWN, ids=name_of)
async def test_what_is_known_is_not_seen(database: Database, known: Known) -> None:
    process = await known(database, fresh_process())
    unknowing = process.model_copy()
    assert getattr(process, KNOWN_STATE) is not None
    assert process == unknowing
    assert unknowing == process
    assert repr(process) == repr(unknowing)
    assert str(process) == str(unknowing)
    assert process.model_dump() == unknowing.model_dump()
    assert process.model_dump_json() == unknowing.model_dump_json()
    assert set(process.model_dump()) == set(dict(process)) == set(ProcessMetadata.model_fields)
    assert pickle.loads(pickle.dumps(process)) == process  # noqa: S301 - our own
    assert KNOWN_STATE.encode() not in pickle.dumps(process)


async def save_here(database: Database, process: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata:
    await database.repository.save(process, conn)
    return process


async def update_here(database: Database, process: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata:
    await database.repository.save(process.model_copy(update={"state": {}}))
    process.version = 1
    await database.repository.update(process, conn)
    return process


async def advance_here(database: Database, process: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata:
    await database.repository.save(process.model_copy(update={"state": {}}))
    process.version = 1
    await database.repository.advance(process, conn, sent=[new_command(), new_command()])
    return process


async def get_by_id_here(database: Database, process: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata:
    await database.repository.save(process)
    found = await database.repository.get_by_id(process.domain, process.process_id, conn)
    assert found is not None
    return found


async def lock_here(database: Database, process: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata:
    await database.repository.save(process)
    found = await database.repository.get_by_id(process.domain, process.process_id, conn, for_update=True)
    assert found is not None
    return found


async def find_by_status_here(database: Database, process: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata:
    await database.repository.save(process)
    [found] = await database.repository.find_by_status(process.domain, [ProcessStatus.PENDING], conn)
    return found


async def claim_here(database: Database, process: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata:
    await database.repository.save(process)
    [found] = await database.repository.claim(process.domain, [ProcessStatus.PENDING], conn, limit=1)
    return found


KnownHere: TypeAlias = Callable[[Database, ProcessMetadata, AsyncConnection], Awaitable[ProcessMetadata]]
KNOWN_HERE: list[KnownHere] = [
    save_here,
    update_here,
    advance_here,
    get_by_id_here,
    lock_here,
    find_by_status_here,
    claim_here,
]


@pytest.mark.parametrize("known", KNOWN_HERE, ids=name_of)
async def test_what_is_known_in_a_transaction_is_known_in_it_only(database: Database, known: KnownHere) -> None:
    repository = database.repository
    async with database.engine.connect() as conn:
        process = await known(database, fresh_process(), conn)
        process.current_step = "charge"
        assert await database.state_sent_by(repository.update(process, conn)) is None
        assert await database.state_sent_by(repository.advance(process, conn, sent=new_command())) is None
        process.state["one"] = True
        assert await database.state_sent_by(repository.update(process, conn)) is not None
        assert await database.state_sent_by(repository.update(process, conn)) is None
        await conn.commit()
        assert as_text(json.loads(await database.stored(process))) == as_text(process.state)
        # Whether it was committed, nobody has told.
        assert await database.state_sent_by(repository.update(process, conn)) is not None
        await conn.commit()
    await assert_is_sent(database, process, repository.update(process))


async def test_what_was_committed_is_known_in_every_transaction(database: Database) -> None:
    process = await after_get_by_id(database, fresh_process())
    async with database.engine.begin() as conn:
        assert await database.state_sent_by(database.repository.update(process, conn)) is None
    other = await after_get_by_id(database, fresh_process())
    async with database.engine.begin() as conn:
        other.state["one"] = 2
        assert await database.state_sent_by(database.repository.update(other, conn)) is not None
    for each in (process, other):
        assert as_text(json.loads(await database.stored(each))) == as_text(each.state)


@pytest.mark.parametrize("method", ["update", "advance", "read"])
async def test_after_a_rollback_to_a_savepoint_the_state_is_sent(database: Database, method: str) -> None:
    """The row reaches the version of the object another way, in the same transaction, and with another state."""
    repository, process = database.repository, await after_get_by_id(database, fresh_process())
    key = process.domain, process.process_id
    async with database.engine.begin() as conn:
        savepoint = await conn.begin_nested()
        process.state = {"by": "the one that is rolled back"}
        if method == "advance":
            await repository.advance(process, conn, sent=[new_command(), new_command()])
        else:
            await repository.update(process, conn)
        if method == "read":
            found = await repository.get_by_id(*key, conn)
            assert found is not None
            process = found
        await savepoint.rollback()
        other = await repository.get_by_id(*key, conn)
        assert other is not None
        other.state = {"by": "another"}
        await repository.update(other, conn)
        assert other.version == process.version
        assert await database.state_sent_by(repository.update(process, conn)) is not None
    assert json.loads(await database.stored(process)) == {"by": "the one that is rolled back"}


async def test_what_many_saved_is_sent(database: Database) -> None:
    """Not what was known of a row of this id before, which is gone."""
    process = await after_get_by_id(database, fresh_process())
    process.state = {"new": True}
    database.remove(process)
    process.version = None
    await database.repository.save_many([process])
    process.state = copy.deepcopy(STATE)
    await assert_is_sent(database, process, database.repository.update(process))


@pytest.mark.parametrize("method", ["update", "advance"])
async def test_after_a_rollback_the_state_is_sent(database: Database, method: str) -> None:
    """The row reaches the version of the object another way, and with another state."""
    repository, process = database.repository, await after_get_by_id(database, fresh_process())
    other = await repository.get_by_id(process.domain, process.process_id)
    assert other is not None
    process.state = {"by": "the one that is rolled back"}
    async with database.engine.connect() as conn:
        if method == "update":
            await repository.update(process, conn)
        else:
            await repository.advance(process, conn, sent=new_command())
        await conn.rollback()
    other.state = {"by": "another"}
    await repository.update(other)
    assert other.version == process.version
    await assert_is_sent(database, process, repository.update(process))


async def test_what_was_read_in_a_transaction_that_is_rolled_back_is_not_known(database: Database) -> None:
    """What it read was its own, and never in the row for anybody else."""
    repository, process = database.repository, await after_get_by_id(database, fresh_process())
    other = await repository.get_by_id(process.domain, process.process_id)
    assert other is not None
    process.state = {"by": "the one that is rolled back"}
    async with database.engine.connect() as conn:
        await repository.update(process, conn)
        found = await repository.get_by_id(process.domain, process.process_id, conn)
        await conn.rollback()
    assert found is not None
    other.state = {"by": "another"}
    await repository.update(other)
    assert other.version == found.version
    await assert_is_sent(database, found, repository.update(found))


async def test_a_refused_update_leaves_what_is_known(database: Database) -> None:
    process = await after_get_by_id(database, fresh_process())
    other = await database.repository.get_by_id(process.domain, process.process_id)
    assert other is not None
    other.state = {"by": "another"}
    await database.repository.update(other)
    with pytest.raises(ConcurrentUpdateError):
        await database.repository.update(process)
    assert json.loads(await database.stored(process)) == other.state


async def both_have(database: Database, elsewhere: Database) -> ProcessMetadata:
    """One process in two databases, at one version and with different states; returns what the first has."""
    process = fresh_process()
    await elsewhere.repository.save(process.model_copy(deep=True, update={"state": {"elsewhere": True}}))
    return await after_get_by_id(database, process)


async def test_what_one_database_has_is_sent_to_another(database: Database, elsewhere: Database) -> None:
    process = await both_have(database, elsewhere)
    await assert_is_sent(elsewhere, process, elsewhere.repository.update(process))


async def test_what_one_database_has_is_sent_to_another_on_its_connection(
    database: Database, elsewhere: Database
) -> None:
    """A connection comes from another engine than the repository's."""
    process = await both_have(database, elsewhere)
    async with elsewhere.engine.begin() as conn:
        sent = await elsewhere.state_sent_by(database.repository.update(process, conn))
    assert sent is not None
    assert as_text(json.loads(await elsewhere.stored(process))) == as_text(STATE)


async def test_what_was_read_on_a_connection_of_another_database_is_sent(
    database: Database, elsewhere: Database
) -> None:
    process = await both_have(database, elsewhere)
    async with elsewhere.engine.begin() as conn:
        found = await database.repository.get_by_id(process.domain, process.process_id, conn)
    assert found is not None
    assert found.state == {"elsewhere": True}
    await assert_is_sent(database, found, database.repository.update(found))


class Line(BaseModel):
    article: str
    price: Decimal


class OrderState(BaseModel):
    total: float = 12.5
    lines: list[Line] = Field(default_factory=lambda: [Line(article="book", price=Decimal("12.50"))])


class OrderStateWithNote(OrderState):
    note: str | None = None


class OrderStateWithoutLines(BaseModel):
    total: float


async def typed_process(database: Database) -> ProcessMetadata[OrderState]:
    process = ProcessMetadata[OrderState](
        domain=uuid4().hex, process_id=uuid4(), process_type="order", state=OrderState()
    )
    repository = PostgresProcessRepository(database.engine, state_type=OrderState)
    await repository.save(process)
    found = await repository.get_by_id(process.domain, process.process_id)
    assert found is not None
    return found


TYPED_CHANGES: dict[str, Callable[[OrderState], object]] = {
    "a field": lambda state: setattr(state, "total", 13.0),
    "a field of a nested model": lambda state: setattr(state.lines[0], "article", "pen"),
    "a number written otherwise": lambda state: setattr(state.lines[0], "price", Decimal("12.5")),
    "one more model": lambda state: state.lines.append(Line(article="pen", price=Decimal(1))),
    "one less": lambda state: state.lines.clear(),
}


@pytest.mark.parametrize("change", TYPED_CHANGES.values(), ids=TYPED_CHANGES)
async def test_a_typed_state_is_sent_when_it_changed(
    database: Database, change: Callable[[OrderState], object]
) -> None:
    repository = PostgresProcessRepository(database.engine, state_type=OrderState)
    process = await typed_process(database)
    for _ in range(2):
        assert await database.update(process, repository) is None
    change(process.state)
    sent = await database.update(process, repository)
    assert sent is not None
    assert json.loads(await database.stored(process)) == process.state.model_dump(mode="json")
    assert await repository.get_by_id(process.domain, process.process_id) == process
    assert await database.update(process, repository) is None


@pytest.mark.parametrize(
    ("state_type", "stored"),
    [
        (OrderStateWithNote, {"total": 12.5, "lines": [{"article": "book", "price": "12.50"}], "note": None}),
        (OrderStateWithoutLines, {"total": 12.5}),
    ],
)
async def test_a_typed_state_is_sent_when_its_type_changed(
    database: Database, state_type: type[Any], stored: dict[str, object]
) -> None:
    """What was added with a default since, or dropped: nobody assigned anything."""
    process = await typed_process(database)
    repository = PostgresProcessRepository[Any](database.engine, state_type=state_type)
    found = await repository.get_by_id(process.domain, process.process_id)
    assert found is not None
    assert await database.update(found, repository) is not None
    assert json.loads(await database.stored(process)) == stored


async def test_a_typed_state_is_sent_when_other_software_stored_another_number(database: Database) -> None:
    """As a float, it is written as one, however it was read."""
    process = await typed_process(database)
    await database.write(process, '{"total": 7, "lines": []}')
    repository = PostgresProcessRepository(database.engine, state_type=OrderState)
    found = await repository.get_by_id(process.domain, process.process_id)
    assert found is not None
    assert await database.update(found, repository) is not None
    assert await database.stored(process) == '{"lines": [], "total": 7.0}'
