"""What is in the way of many items: which error, about which item, and with which others."""

import pickle
from itertools import chain
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessError,
    ProcessMetadata,
    ProcessNotFoundError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StoredDataError,
)
from commandbus_process.tables import process_audit
from tests.support.bulk_failures import Repository
from tests.support.databases import write_unchecked
from tests.support.items import (
    BATCH,
    DOMAIN,
    NOON,
    for_process,
    new_entries,
    new_entry,
    new_process,
    new_processes,
    numbers,
)

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


def assert_is_told_with(error: ProcessError, others: list[tuple[type[ProcessError], UUID]]) -> None:
    assert [(type(other), other.process_id) for other in error.other_errors] == others
    assert f"and {len(others)} more" in str(error)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own pickle
    assert str(copied) == str(error)
    assert [vars(other) for other in copied.other_errors] == [vars(other) for other in error.other_errors]


async def test_the_error_is_about_the_first_taken_id_and_lists_the_others(
    repository: Repository, engine: AsyncEngine
) -> None:
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


async def test_an_outcome_of_newer_software_blocks_nobody(
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


async def test_the_error_lists_all_conflicts_of_a_batch(
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
