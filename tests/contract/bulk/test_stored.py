"""Many processes, or many steps, are stored as the single methods store them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    JsonObject,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit
from tests.support.bulk_failures import Connection, Repository, stored
from tests.support.databases import execute
from tests.support.items import (
    BATCH,
    DOMAIN,
    NOON,
    Step,
    for_process,
    given_as,
    new_entries,
    new_entry,
    new_process,
    new_processes,
    numbers,
    step_names,
)


@pytest.fixture(params=["list", "generator", "async generator"])
def form(request: pytest.FixtureRequest) -> str:
    """What the items are given as."""
    return str(request.param)


# What is stored.


async def test_nothing_is_given(repository: Repository, engine: AsyncEngine, conn: Connection) -> None:
    for each in ("list", "generator", "async generator"):
        assert await repository.save_many(given_as(each, new_processes(0)), conn) == 0
        assert await repository.log_many(given_as(each, for_process(DOMAIN, uuid4(), new_entries(0))), conn) == 0
        steps: list[Step] = []
        assert await repository.log_many(given_as(each, steps), conn) == 0
    assert await numbers(engine) == (0, 0)


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
    """Also with statistics, when the server is free to choose how it joins the items to its tables."""
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
    # The server compares numbers as decimals, even if Python compares them as floats.
    assert await repository.log_many(for_process("singly", process.process_id, entries)) == 0
