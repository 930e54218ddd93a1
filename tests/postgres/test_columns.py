"""Each column comes back as what was written, value and Python type, in whatever way it is written and read.

The values are made from the columns' types. So a column that is added is tested without a change here.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, String, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StepReply,
    _columns,
)
from commandbus_process.tables import STATE_VERSION, SetBy, process, process_audit
from tests.support.items import DOMAIN

Repository = PostgresProcessRepository[JsonObject]
# The version of the state is no field: the type of the state decides it. `states/test_versions.py` is about it.
FIELDS = [name for name in _columns.READ if name != STATE_VERSION]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def value(column: Column[Any], number: int) -> Any:
    """A value for a column; another one for each number."""
    enum = column.info["enum"]
    if enum is not None:
        members = list(enum)
        return members[number % len(members)]
    for of_type, made in {
        JSONB: {"column": column.name, "number": number, "nested": [None, 1.5, {"é": True}]},
        DateTime: NOON + timedelta(days=number, microseconds=number),
        Uuid: UUID(int=number * 1_000 + len(str(column.name))),
        Boolean: number % 2 == 1,
        Integer: number,
        BigInteger: 2**40 + number,
        String: f"{column.name} {number}",
    }.items():
        if isinstance(column.type, of_type):
            return made
    raise AssertionError(column)


def values(columns: Any, number: int, *setters: SetBy) -> dict[str, Any]:
    without = {"domain", "process_id", STATE_VERSION}
    return {
        column.name: value(column, number)
        for column in columns
        if not column.info["set_by"].isdisjoint(setters) and column.name not in without
    }


def filled(number: int) -> ProcessMetadata:
    return ProcessMetadata(domain=DOMAIN, process_id=uuid4(), **values(process.c, number, SetBy.SAVE))


def command(number: int, *setters: SetBy) -> ProcessAuditEntry:
    fields: dict[str, Any] = {**values(process_audit.c, number, SetBy.COMMAND, *setters), "command_id": uuid4()}
    return ProcessAuditEntry(**fields)


def only_required(of: ProcessMetadata) -> ProcessMetadata:
    nothing = {name: None for name in FIELDS if process.c[name].nullable}
    return of.model_copy(update=nothing)


def described(read: Any) -> Any:
    """A value with the types of all of its parts: 1 equals True and a StrEnum its text."""
    if isinstance(read, dict):
        return {key: described(each) for key, each in cast("dict[str, Any]", read).items()}
    if isinstance(read, list):
        return [described(each) for each in cast("list[object]", read)]
    return type(read), read


def fields(read: ProcessMetadata | ProcessAuditEntry, *without: str) -> dict[str, Any]:
    return {name: described(each) for name, each in vars(read).items() if name not in without}


async def by_id(repository: Repository, of: ProcessMetadata, _: AsyncConnection) -> ProcessMetadata | None:
    return await repository.get_by_id(DOMAIN, of.process_id)


async def locking(repository: Repository, of: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata | None:
    return await repository.get_by_id(DOMAIN, of.process_id, conn, for_update=True)


async def in_a_list(repository: Repository, of: ProcessMetadata, _: AsyncConnection) -> ProcessMetadata | None:
    return next(
        each for each in await repository.find_by_status(DOMAIN, [of.status]) if each.process_id == of.process_id
    )


async def claimed(repository: Repository, of: ProcessMetadata, conn: AsyncConnection) -> ProcessMetadata | None:
    found = await repository.claim(DOMAIN, [of.status], conn, limit=100)
    return next(each for each in found if each.process_id == of.process_id)


READ: dict[str, Callable[[Repository, ProcessMetadata, AsyncConnection], Awaitable[ProcessMetadata | None]]] = {
    "get_by_id": by_id,
    "get_by_id, locking": locking,
    "find_by_status": in_a_list,
    "claim": claimed,
}


async def save(repository: Repository, made: ProcessMetadata) -> None:
    await repository.save(made)


async def save_with_commands(repository: Repository, made: ProcessMetadata) -> None:
    await repository.save(made, sent=[command(1), command(2)])


async def copy(repository: Repository, made: ProcessMetadata) -> None:
    await repository.save_many([made, filled(1)])


def nothing_copied(*_: object) -> bool:
    return False


async def insert_many(repository: Repository, made: ProcessMetadata) -> None:
    """A process is in the way of COPY when it comes, and has gone when INSERT comes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commandbus_process.postgres._bulk.copy_rows", nothing_copied)
        await repository.save_many([made, filled(1)])


async def update(repository: Repository, made: ProcessMetadata) -> None:
    before = filled(1).model_copy(update={column: getattr(made, column) for column in KEPT})
    await repository.save(before)
    changed = before.model_copy(update={column: getattr(made, column) for column in CHANGED})
    await repository.update(changed)
    take_over(made, changed)


async def advance(repository: Repository, made: ProcessMetadata) -> None:
    before = filled(1).model_copy(update={column: getattr(made, column) for column in KEPT})
    await repository.save(before)
    changed = before.model_copy(update={column: getattr(made, column) for column in CHANGED})
    await repository.advance(changed, sent=command(1))
    take_over(made, changed)


KEPT = [column.name for column in process.c if column.info["set_by"] == {SetBy.SAVE}]
CHANGED = [name for name in FIELDS if SetBy.UPDATE in process.c[name].info["set_by"]]


def take_over(made: ProcessMetadata, changed: ProcessMetadata) -> None:
    """What the database sets in an update."""
    for column in process.c:
        if SetBy.DATABASE in column.info["set_by"]:
            setattr(made, column.name, getattr(changed, column.name))


WRITE: dict[str, Callable[[Repository, ProcessMetadata], Awaitable[None]]] = {
    "save": save,
    "save with commands": save_with_commands,
    "save_many by COPY": copy,
    "save_many by INSERT": insert_many,
    "update": update,
    "advance": advance,
}


@pytest.mark.parametrize("empty", [False, True], ids=["filled", "only what is required"])
@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("write", WRITE)
async def test_a_process_comes_back_in_each_column(
    repository: Repository, engine: AsyncEngine, write: str, read: str, *, empty: bool
) -> None:
    made = only_required(filled(2)) if empty else filled(2)
    await WRITE[write](repository, made)
    async with engine.begin() as conn:
        found = await READ[read](repository, made, conn)
    assert found is not None
    assert fields(found) == fields(made)
    assert {name for name in vars(found) if vars(found)[name] is None} == {
        name for name in FIELDS if empty and process.c[name].nullable
    }


async def logged(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> None:
    await repository.log_step(DOMAIN, of.process_id, entry)


async def logged_by_copy(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> None:
    await repository.log_many([(DOMAIN, of.process_id, entry)])


async def logged_by_insert(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> None:
    there = command(1)
    await repository.log_step(DOMAIN, of.process_id, there)
    await repository.log_many([(DOMAIN, of.process_id, there), (DOMAIN, of.process_id, entry)])


async def sent_alone(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> None:
    await repository.advance(of, sent=entry)


async def sent_with_another(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> None:
    await repository.advance(of, sent=[entry, command(1)])


async def replied_afterwards(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> None:
    await repository.log_step(DOMAIN, of.process_id, entry.model_copy(update=NO_REPLY))
    await repository.update_step_reply(DOMAIN, of.process_id, entry.command_id, entry)


async def replied_in_a_step(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> None:
    await repository.log_step(DOMAIN, of.process_id, entry.model_copy(update=NO_REPLY))
    assert entry.reply_outcome is not None
    reply = StepReply(entry.command_id, entry.reply_outcome, entry.reply_data, entry.received_at)
    await repository.advance(of, reply=reply)


NO_REPLY = {column.name: None for column in process_audit.c if SetBy.REPLY in column.info["set_by"]}
LOG: dict[str, Callable[[Repository, ProcessMetadata, ProcessAuditEntry], Awaitable[None]]] = {
    "log_step": logged,
    "log_many by COPY": logged_by_copy,
    "log_many by INSERT": logged_by_insert,
    "advance with one": sent_alone,
    "advance with several": sent_with_another,
    "update_step_reply": replied_afterwards,
    "advance on a reply": replied_in_a_step,
}


async def in_the_trail(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> ProcessAuditEntry:
    trail = await repository.get_audit_trail(DOMAIN, of.process_id)
    return next(each for each in trail if each.command_id == entry.command_id)


async def to_compensate(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> ProcessAuditEntry:
    steps = await repository.get_steps_to_compensate(DOMAIN, of.process_id, include_unknown=True)
    return next(each for each in steps if each.command_id == entry.command_id)


async def in_an_error(repository: Repository, of: ProcessMetadata, entry: ProcessAuditEntry) -> ProcessAuditEntry:
    with pytest.raises(StepAlreadyLoggedError) as caught:
        await repository.log_step(DOMAIN, of.process_id, entry.model_copy(update={"step_name": "another"}))
    return caught.value.recorded


READ_ENTRY: dict[str, Callable[[Repository, ProcessMetadata, ProcessAuditEntry], Awaitable[ProcessAuditEntry]]] = {
    "get_audit_trail": in_the_trail,
    "get_steps_to_compensate": to_compensate,
    "an error": in_an_error,
}


@pytest.mark.parametrize("read", READ_ENTRY)
@pytest.mark.parametrize("log", LOG)
async def test_an_entry_comes_back_in_each_column(repository: Repository, log: str, read: str) -> None:
    of, entry = filled(2), command(3, SetBy.REPLY)
    assert entry.reply_outcome is ReplyOutcome.SUCCESS
    if read == "get_steps_to_compensate":
        entry = entry.model_copy(update={"compensates": None})
    await repository.save(of)
    await LOG[log](repository, of, entry)
    assert fields(await READ_ENTRY[read](repository, of, entry)) == fields(entry)


async def test_an_entry_comes_back_without_what_is_not_required(repository: Repository) -> None:
    of, entry = filled(2), command(3)
    entry = entry.model_copy(update={column.name: None for column in process_audit.c if column.nullable})
    await repository.save(of)
    await repository.log_step(DOMAIN, of.process_id, entry)
    assert fields(await in_the_trail(repository, of, entry)) == fields(entry)
    assert {name for name in vars(entry) if vars(entry)[name] is None} == {
        column.name for column in process_audit.c if column.nullable
    }


def test_each_field_is_a_column() -> None:
    assert set(ProcessMetadata.model_fields) == set(process.c.keys()) - {STATE_VERSION}
    assert {*ProcessAuditEntry.model_fields, "id", "domain", "process_id"} == set(process_audit.c.keys())
