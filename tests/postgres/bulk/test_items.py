"""Which items the bulk methods take, which they refuse, and what they do to other tasks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)
from commandbus_process.tables import process as process_table
from tests.support.bulk_failures import NOT_A_NUMBER, stored
from tests.support.databases import execute
from tests.support.items import (
    BATCH,
    DOMAIN,
    LONGEST_TEXT,
    NOON,
    Statements,
    Step,
    bad_entry,
    bad_process,
    for_process,
    new_entry,
    new_process,
    new_processes,
    numbers,
)
from tests.support.states import (
    EXPRESS,
    ORDER,
    REFUND,
    CamelCase,
    ExpressOrderState,
    OrderState,
    RefundState,
    Shipment,
    process_with,
)

Repository = PostgresProcessRepository[JsonObject]
Connection = AsyncConnection | None


@pytest.mark.parametrize(
    ("state_type", "states"),
    [
        (OrderState | ExpressOrderState, [ORDER, EXPRESS]),
        (OrderState | RefundState | ExpressOrderState, [REFUND, EXPRESS, ORDER]),
        (Shipment, [Shipment(parcel=uuid4(), sent_on=NOON)]),
        (CamelCase, [CamelCase(orderId=7)]),
        ({"order": OrderState | ExpressOrderState, "refund": RefundState}, [ORDER, REFUND, EXPRESS]),
        (OrderState | None, [None, ORDER]),
    ],
    ids=["with a subclass", "a union", "a dataclass", "with an alias", "by process type", "or none"],
)
async def test_typed_states_are_stored_as_save_stores_them(
    engine: AsyncEngine, state_type: object, states: list[object]
) -> None:
    repository: PostgresProcessRepository[Any] = PostgresProcessRepository(engine, state_type=state_type)
    processes = [process_with(state, "refund" if state is REFUND else "order") for state in states]
    for process in processes:
        await repository.save(process.model_copy(update={"domain": "singly"}))
    in_bulk = [process.model_copy(update={"domain": "in bulk"}) for process in processes]
    await repository.save_many(in_bulk)
    singly = await stored(engine, process_table, "singly")
    assert len(singly) == len(processes)
    assert await stored(engine, process_table, "in bulk") == singly
    for process in in_bulk:
        found = await repository.get_by_id("in bulk", process.process_id)
        assert found is not None
        assert found == process
        assert type(found.state) is type(process.state)
        await repository.update(process)


async def test_knowledge_about_a_deleted_process_is_not_used_for_a_new_one(
    repository: Repository, database_url: str, conn: Connection
) -> None:
    """An update leaves out a state that the row is known to have; this row is another one, at the same version."""
    process = new_process()
    process.state = {"at": "first"}
    await repository.save(process)
    execute(database_url, "DELETE FROM commandbus.process")
    process.state = {"at": "second"}
    await repository.save_many([process], conn)
    process.state = {"at": "first"}
    await repository.update(process, conn)
    found = await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert found is not None
    assert found.state == {"at": "first"}


class Loose(BaseModel):
    when: Any


async def save_loosely_typed(repository: Repository) -> int:
    typed = PostgresProcessRepository(repository._database.engine, state_type=Loose)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    states = [Loose(when=1), Loose(when=NOON)]
    return await typed.save_many(
        ProcessMetadata(domain=DOMAIN, process_id=uuid4(), process_type="order", state=state) for state in states
    )


async def save_undeclared(repository: Repository) -> int:
    types: dict[str, type[OrderState]] = {"order": OrderState}
    typed: PostgresProcessRepository[Any] = PostgresProcessRepository(repository._database.engine, state_type=types)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return await typed.save_many([process_with(ORDER), process_with(REFUND, "refund")])


EXISTING = UUID(int=1)
NAIVE = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - what is refused
WRONG: Any = "not a uuid"


def log(repository: Repository, number: int, **changes: object) -> Awaitable[int]:
    return repository.log_many(
        for_process(DOMAIN, EXISTING, [*(new_entry() for _ in range(number)), bad_entry(**changes)])
    )


def log_of_many(repository: Repository, number: int, *last: Any) -> Awaitable[int]:
    return repository.log_many([*((DOMAIN, EXISTING, new_entry()) for _ in range(number)), last])


REFUSED: dict[str, tuple[Callable[[Repository], Awaitable[int]], str]] = {
    "processes[1203].state": (
        lambda repository: repository.save_many(
            bad_process(state=NOT_A_NUMBER if number == 1203 else {}) for number in count()
        ),
        "finite",
    ),
    "processes[1].state.when": (save_loosely_typed, "another value"),
    "processes[1].process_type": (save_undeclared, "no state type is declared for 'refund'"),
    "processes[0]": (lambda repository: repository.save_many([bad_process(domain="")]), "domain"),
    "processes[2]": (
        lambda repository: repository.save_many([*new_processes(2), bad_process(created_at=NAIVE)]),
        "created_at",
    ),
    "steps[2].command_data": (lambda repository: log(repository, 2, command_data={"a": ["\0"]}), "NUL"),
    "steps[0].reply_data": (
        lambda repository: log(repository, 0, reply_data=NOT_A_NUMBER, reply_outcome=ReplyOutcome.FAILED),
        "finite",
    ),
    "steps[1].reply_outcome": (lambda repository: log(repository, 1, received_at=NOON), "must be given"),
    "steps[0].command_type": (lambda repository: log(repository, 0, command_type=""), "must not be empty"),
    "steps[1]": (lambda repository: log(repository, 1, step_name="x" * 256), "step_name"),
    "steps[5].command_type": (
        lambda repository: log_of_many(repository, 5, DOMAIN, EXISTING, bad_entry(command_type="")),
        "must not be empty",
    ),
    "steps[1].domain": (lambda repository: log_of_many(repository, 1, "x" * 256, EXISTING, new_entry()), "at most 255"),
    "steps[0].process_id": (lambda repository: log_of_many(repository, 0, DOMAIN, WRONG, new_entry()), "a UUID"),
    "steps[1100].command_data": (
        lambda repository: log_of_many(repository, 1100, DOMAIN, EXISTING, bad_entry(command_data={1: "a"})),
        "string",
    ),
}


PROCESS, ENTRY, STEP = new_process(), new_entry(), (DOMAIN, EXISTING, new_entry())
STEP_TYPE = r"must be \(domain, process id, ProcessAuditEntry\), not "
WRONG_ARGUMENTS: dict[str, tuple[str, Any, str, str]] = {
    "one process": ("save_many", PROCESS, "processes", "must be an iterable of ProcessMetadata, not ProcessMetadata"),
    "no processes": ("save_many", None, "processes", "not NoneType"),
    "a number of processes": ("save_many", 7, "processes", "not int"),
    "a function of processes": ("save_many", new_processes, "processes", "not function"),
    "a dict among processes": ("save_many", [PROCESS, {"domain": "a"}], "processes[1]", "ProcessMetadata, not dict"),
    "an entry among processes": ("save_many", [ENTRY], "processes[0]", "ProcessMetadata, not ProcessAuditEntry"),
    "processes by id": ("save_many", {PROCESS.process_id: PROCESS}, "processes[0]", "ProcessMetadata, not UUID"),
    "a text as processes": ("save_many", "ab", "processes[0]", "ProcessMetadata, not str"),
    "no steps": ("log_many", None, "steps", "not NoneType"),
    "none among steps": ("log_many", [None], "steps[0]", STEP_TYPE + "NoneType"),
    "no entry in a step": ("log_many", [(DOMAIN, EXISTING, None)], "steps[0]", "a ProcessAuditEntry, not NoneType"),
    "an entry as steps": ("log_many", ENTRY, "steps", "must be an iterable of"),
    "one step": ("log_many", STEP, "steps[0]", STEP_TYPE + "str"),
    "a short step": ("log_many", [STEP, STEP[:2]], "steps[1]", STEP_TYPE + "2 values"),
    "a long step": ("log_many", [(*STEP, 1)], "steps[0]", STEP_TYPE + "4 values"),
    "an entry among steps": ("log_many", [STEP, ENTRY], "steps[1]", STEP_TYPE + "ProcessAuditEntry"),
    "a step of three letters": ("log_many", ["abc"], "steps[0]", STEP_TYPE + "str"),
    "a process in a step": ("log_many", [(DOMAIN, EXISTING, PROCESS)], "steps[0]", "a ProcessAuditEntry, not"),
    "a number in a step": ("log_many", [(7, EXISTING, ENTRY)], "steps[0].domain", "string"),
}


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS)
async def test_wrong_arguments_are_refused_before_any_sql(
    repository: Repository, engine: AsyncEngine, wrong: str
) -> None:
    method, items, field, reason = WRONG_ARGUMENTS[wrong]
    statements = Statements(engine)
    with pytest.raises(InvalidInputError, match=reason) as caught:
        await getattr(repository, method)(items)
    assert caught.value.field == field
    assert statements.sent == []


@pytest.mark.parametrize("field", REFUSED)
async def test_the_error_names_the_position_of_what_cannot_be_stored(
    repository: Repository, engine: AsyncEngine, field: str
) -> None:
    await repository.save(new_process(EXISTING))
    call, reason = REFUSED[field]
    with pytest.raises(InvalidInputError, match=reason) as caught:
        await call(repository)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert await numbers(engine) == (1, 0)


async def test_a_session_in_place_of_a_connection_is_refused_with_the_remedy(
    repository: Repository, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine) as session:
        wrong: Any = session
        for call in (
            repository.save_many([new_process()], wrong),
            repository.log_many(for_process(DOMAIN, uuid4(), [new_entry()]), wrong),
            repository.log_many([(DOMAIN, uuid4(), new_entry())], wrong),
        ):
            with pytest.raises(TypeError, match=r"await session\.connection\(\)"):
                await call


async def test_an_error_in_the_callers_code_is_not_translated(
    repository: Repository, engine: AsyncEngine, conn: Connection
) -> None:
    """It may be the server's too, from another connection."""

    async def processes() -> AsyncIterator[ProcessMetadata]:
        yield new_process()
        async with engine.connect() as other:
            await other.execute(text("DO $$ BEGIN RAISE 'elsewhere' USING ERRCODE = '40P01'; END $$"))

    with pytest.raises(DBAPIError, match="elsewhere"):
        await repository.save_many(processes(), conn)
    assert await numbers(engine) == (0, 0)


async def test_the_text_of_a_statement_is_bounded(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    lengths = [1, *[100_000] * 25, 3 * LONGEST_TEXT, 1]
    entries = [new_entry(command_data={"text": "é" * length}) for length in lengths]
    await repository.log_many(for_process(DOMAIN, process.process_id, entries[:1]))
    statements = Statements(engine)
    assert await repository.log_many(for_process(DOMAIN, process.process_id, entries)) == len(entries) - 1
    sent = [max(len(value) for value in parameters.values()) for parameters in statements.writing]
    assert min(sent) > len("[]")
    [alone] = [length for length in sent if length > LONGEST_TEXT + 10_000]
    assert 3 * LONGEST_TEXT < alone < 3 * LONGEST_TEXT + 1_000
    assert len(sent) < len(entries) / 2
    assert await repository.get_audit_trail(DOMAIN, process.process_id) == entries


async def test_items_can_be_read_from_the_same_connection(repository: Repository, engine: AsyncEngine) -> None:
    """On the caller's connection nothing is asked for while something is being sent."""
    before = asyncio.all_tasks()
    number = 2 * BATCH + 10
    await repository.save_many(new_processes(number))

    async def copies(conn: AsyncConnection) -> AsyncIterator[ProcessMetadata]:
        result = await conn.stream(select(process_table.c.process_id).where(process_table.c.domain == DOMAIN))
        async for (process_id,) in result:
            assert asyncio.all_tasks() == before
            yield new_process(process_id).model_copy(update={"domain": "copies"})

    async def steps(conn: AsyncConnection) -> AsyncIterator[Step]:
        for process in await repository.find_by_status("copies", [ProcessStatus.PENDING], conn):
            assert asyncio.all_tasks() == before
            key = process.domain, process.process_id
            if process.process_id.int % 100 == 0:
                assert await repository.get_by_id(*key, conn) == process
            yield (*key, new_entry())

    async with engine.begin() as conn:
        assert await repository.save_many(copies(conn), conn) == number
        assert await repository.log_many(steps(conn), conn) == number
    assert await numbers(engine) == (2 * number, number)


async def test_other_tasks_get_their_turn(repository: Repository, conn: Connection) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    asked_at: list[int] = []

    def processes() -> Iterator[ProcessMetadata]:
        for process in new_processes(2 * BATCH):
            asked_at.append(turns)
            yield process

    task = asyncio.create_task(take_turns())
    await repository.save_many(processes(), conn)
    task.cancel()
    at_once = max(asked_at.count(turn) for turn in set(asked_at))
    assert at_once <= 100
