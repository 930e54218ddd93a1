"""States of several versions: on each way that reads or writes one, none is lost, and a newer one is never overwritten.

What `StateVersions` accepts, and how converters are run, is in `unit/test_state_versions.py`.
"""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessFilter,
    ProcessMetadata,
    ProcessRetention,
    ProcessStatus,
    ProcessWithTrail,
    RawStates,
    StateTooNewError,
    StateVersions,
    StepReply,
    StoredDataError,
    StoredStateError,
)
from tests.support.advancing import SHAPES, new_command, reply_to
from tests.support.databases import Server, as_role, async_url, execute
from tests.support.ended import END, days, last
from tests.support.items import DOMAIN, NOON
from tests.support.versions import (
    ORDERS,
    PROGRAMS,
    SECOND,
    STORED,
    THIRD,
    THIRD_WRITING,
    FirstOrder,
    SecondOrder,
    ThirdOrder,
    order,
    split,
    stored,
    undo_rename,
)
from tests.support.waiting import is_waiting_for_a_lock

Repository = PostgresProcessRepository[Any]
Found = dict[UUID, ProcessMetadata[Any]]
PENDING = [ProcessStatus.PENDING]
IN_COLUMN = {1: None, 2: 2, 3: 3}


def program(engine: AsyncEngine, version: int) -> Repository:
    """The repository of the program that knows this version."""
    return PostgresProcessRepository[Any](engine, state_type=PROGRAMS[version])


async def saved(engine: AsyncEngine, version: int) -> ProcessMetadata[Any]:
    process = order(version)
    await program(engine, version).save(process)
    assert await stored(engine, process.process_id) == (IN_COLUMN[version], STORED[version])
    return process


async def by_id(engine: AsyncEngine, state_type: Any, ids: list[UUID], **_: Any) -> Found:
    repository = PostgresProcessRepository[Any](engine, state_type=state_type)
    found = [await repository.get_by_id(DOMAIN, each) for each in ids]
    return {each.process_id: each for each in found if each is not None}


async def locking(engine: AsyncEngine, state_type: Any, ids: list[UUID], **_: Any) -> Found:
    repository = PostgresProcessRepository[Any](engine, state_type=state_type)
    async with engine.begin() as conn:
        found = [await repository.get_by_id(DOMAIN, each, conn, for_update=True) for each in ids]
    return {each.process_id: each for each in found if each is not None}


async def by_ids(engine: AsyncEngine, state_type: Any, ids: list[UUID], **options: Any) -> Found:
    return await PostgresProcessRepository[Any](engine, state_type=state_type).get_by_ids(DOMAIN, ids, **options)


async def by_status(engine: AsyncEngine, state_type: Any, ids: list[UUID], **options: Any) -> Found:
    repository = PostgresProcessRepository[Any](engine, state_type=state_type)
    found = await repository.find_by_status(DOMAIN, PENDING, limit=len(ids), **options)
    return {each.process_id: each for each in found}


async def claimed(engine: AsyncEngine, state_type: Any, ids: list[UUID], **options: Any) -> Found:
    repository = PostgresProcessRepository[Any](engine, state_type=state_type)
    async with engine.begin() as conn:
        found = await repository.claim(DOMAIN, PENDING, conn, limit=len(ids), **options)
    return {each.process_id: each for each in found}


async def streamed(engine: AsyncEngine, state_type: Any, ids: list[UUID], **options: Any) -> Found:
    queries = PostgresProcessQueries[Any](engine, state_type=state_type)
    assert ids
    async with queries.stream(ProcessFilter(domain=DOMAIN), **options) as processes:
        return {each.process_id: each async for each in processes}


async def streamed_consistently(engine: AsyncEngine, state_type: Any, ids: list[UUID], **options: Any) -> Found:
    return await streamed(engine, state_type, ids, consistent=True, **options)


READ: dict[str, Callable[..., Awaitable[Found]]] = {
    "get_by_id": by_id,
    "get_by_id, locking": locking,
    "get_by_ids": by_ids,
    "find_by_status": by_status,
    "claim": claimed,
    "stream": streamed,
    "stream, consistent": streamed_consistently,
}
LISTS = [name for name in READ if not name.startswith("get_by_id,") and name != "get_by_id"]


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("declared", [THIRD, {"order": THIRD}], ids=["for all", "by process type"])
async def test_older_states_are_read_as_the_current_version(engine: AsyncEngine, how: str, declared: Any) -> None:
    ids = {version: (await saved(engine, version)).process_id for version in (1, 2, 3)}
    found = await READ[how](engine, declared, list(ids.values()))
    assert {version: found[each].state for version, each in ids.items()} == dict.fromkeys(ids, ORDERS[3])
    assert {version: found[each].state_version for version, each in ids.items()} == {1: 1, 2: 2, 3: 3}
    for version, each in ids.items():  # reading changes nothing
        assert await stored(engine, each) == (IN_COLUMN[version], STORED[version])


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("known", [1, 2])
async def test_a_newer_state_is_not_read(engine: AsyncEngine, how: str, known: int) -> None:
    process = await saved(engine, 3)
    with pytest.raises(StateTooNewError) as caught:
        await READ[how](engine, PROGRAMS[known] if known == 2 else FirstOrder, [process.process_id])
    error = caught.value
    assert (error.domain, error.process_id, error.process_type) == (DOMAIN, process.process_id, "order")
    assert (error.found, error.known, error.retryable) == (3, known, False)
    assert "Lovelace" not in str(error)


@pytest.mark.parametrize("how", LISTS)
async def test_newer_states_do_not_stop_the_others(engine: AsyncEngine, how: str) -> None:
    new, old = [(await saved(engine, version)).process_id for version in (3, 1)]
    errors: list[StoredDataError] = []
    found = await READ[how](engine, SECOND, [new, old], on_unreadable=errors.append)
    assert {each: process.state for each, process in found.items()} == {old: ORDERS[2]}
    assert [(type(error), error.process_id) for error in errors] == [(StateTooNewError, new)]


async def test_without_a_state_type_version_1_is_known(engine: AsyncEngine, repository: Repository) -> None:
    """Nobody can say what is in a newer one, so it is not given to a program that expects the first one."""
    old, new = await saved(engine, 1), await saved(engine, 2)
    found = await repository.get_by_id(DOMAIN, old.process_id)
    assert found is not None
    assert found.state == STORED[1]
    with pytest.raises(StateTooNewError):
        await repository.get_by_id(DOMAIN, new.process_id)


@pytest.mark.parametrize("how", READ)
async def test_raw_states_are_read_in_any_version(engine: AsyncEngine, how: str) -> None:
    ids = {version: (await saved(engine, version)).process_id for version in (1, 2, 3)}
    found = await READ[how](engine, RawStates(), list(ids.values()))
    for version, each in ids.items():
        assert (found[each].state_version, found[each].state) == (version, STORED[version])


async def test_a_version_that_is_written_out_as_1_is_version_1(engine: AsyncEngine, administrator: AsyncEngine) -> None:
    process = await saved(engine, 1)
    async with administrator.begin() as conn:
        await conn.execute(text("UPDATE commandbus.process SET state_version = 1"))
    for version in (1, 2):
        found = await program(engine, version).get_by_id(DOMAIN, process.process_id)
        assert found is not None
        assert (found.state, found.state_version) == (ORDERS[version], 1)
    await program(engine, 1).update(order(1, process.process_id))
    assert await stored(engine, process.process_id) == (None, STORED[1])


@pytest.mark.parametrize(("wrong", "declared"), [(0, FirstOrder), (-1, THIRD), (1, "later")])
async def test_a_version_that_no_converter_leads_from(
    engine: AsyncEngine, administrator: AsyncEngine, wrong: int, declared: Any
) -> None:
    process = await saved(engine, 1)
    async with administrator.begin() as conn:
        await conn.execute(text("UPDATE commandbus.process SET state_version = :wrong"), {"wrong": wrong})
    if declared == "later":
        declared = StateVersions(ThirdOrder, version=3, upcasters={2: dict})
    for how in (by_id, by_ids):
        with pytest.raises(StoredStateError, match=f"it is at version {wrong}, and this program reads") as caught:
            await how(engine, declared, [process.process_id])
        assert caught.value.process_id == process.process_id


def raises(state: Any) -> Any:
    raise ValueError(f"no {state}")


async def test_a_failing_upcaster_is_an_error_of_its_row(engine: AsyncEngine) -> None:
    old, new = [(await saved(engine, version)).process_id for version in (1, 2)]
    failing = StateVersions(SecondOrder, version=2, upcasters={1: raises})
    for how in (by_id, by_ids):
        with pytest.raises(StoredStateError) as caught:
            await how(engine, failing, [new, old])
        assert caught.value.process_id == old
        assert caught.value.reason == "the upcaster from version 1 raised ValueError"
        assert caught.value.__cause__ is None
    found = await by_ids(engine, failing, [old, new], on_unreadable="skip")
    assert list(found) == [new]


async def save(repository: Repository, version: int) -> ProcessMetadata[Any]:
    process = order(version)
    await repository.save(process)
    return process


async def save_with_commands(repository: Repository, version: int) -> ProcessMetadata[Any]:
    process = order(version)
    await repository.save(process, sent=[new_command(), new_command()])
    return process


async def copy(repository: Repository, version: int) -> ProcessMetadata[Any]:
    process = order(version)
    await repository.save_many([process, order(version)])
    return process


def nothing_copied(*_: object) -> bool:
    return False


async def insert_many(repository: Repository, version: int) -> ProcessMetadata[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commandbus_process.postgres._bulk.copy_rows", nothing_copied)
        return await copy(repository, version)


WRITE_NEW: dict[str, Callable[[Repository, int], Awaitable[ProcessMetadata[Any]]]] = {
    "save": save,
    "save with commands": save_with_commands,
    "save_many by COPY": copy,
    "save_many by INSERT": insert_many,
}


@pytest.mark.parametrize("how", WRITE_NEW)
@pytest.mark.parametrize("written", THIRD_WRITING)
async def test_a_new_process_is_written_in_the_wanted_version(engine: AsyncEngine, how: str, written: int) -> None:
    repository = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[written])
    process = await WRITE_NEW[how](repository, 3)
    assert await stored(engine, process.process_id) == (IN_COLUMN[written], STORED[written])
    assert (process.state, process.state_version) == (ORDERS[3], written)
    for version in (written, 3):
        found = await program(engine, version).get_by_id(DOMAIN, process.process_id)
        assert found is not None
        assert found.state == ORDERS[version]


@pytest.mark.parametrize("shape", ["update", *SHAPES])
@pytest.mark.parametrize("written", THIRD_WRITING)
@pytest.mark.parametrize("before", [1, 2, 3])
async def test_a_process_is_changed_into_the_wanted_version(
    engine: AsyncEngine, conn: AsyncConnection | None, before: int, written: int, shape: str
) -> None:
    """Also from 3 back to 2: the downcaster says what the older form is."""
    process, asked = await saved(engine, before), new_command("reserve")
    repository = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[written])
    await repository.log_step(DOMAIN, process.process_id, asked)
    found = await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert found is not None
    found.state.amount = 43
    if shape == "update":
        await repository.update(found, conn)
    else:
        with_reply, names = SHAPES[shape]
        sent = [new_command(name) for name in names]
        assert await repository.advance(found, conn, reply=reply_to(asked) if with_reply else None, sent=sent)
    assert found.state_version == written
    if conn is not None:
        await conn.commit()
    amount = "amount" if written == 3 else "total"
    assert await stored(engine, process.process_id) == (IN_COLUMN[written], STORED[written] | {amount: 43})


async def blind_update(repository: Repository, process: ProcessMetadata[Any], conn: AsyncConnection | None) -> None:
    """By an object that was never read."""
    await repository.update(process, conn)


async def update_by_number(repository: Repository, process: ProcessMetadata[Any], conn: AsyncConnection | None) -> None:
    await repository.update(process.model_copy(update={"version": 1}), conn)


async def advance_by_number(
    repository: Repository, process: ProcessMetadata[Any], conn: AsyncConnection | None
) -> None:
    for sent in ([], [new_command()], [new_command(), new_command()]):
        with pytest.raises(StateTooNewError):
            await repository.advance(process.model_copy(update={"version": 1}), conn, sent=sent)
    await repository.advance(process.model_copy(update={"version": 1}), conn)


OVERWRITE = {"update, blind": blind_update, "update": update_by_number, "advance": advance_by_number}


@pytest.mark.parametrize("how", OVERWRITE)
@pytest.mark.parametrize("known", [1, 2, "untyped", "raw"])
async def test_a_newer_state_is_never_overwritten(
    engine: AsyncEngine, conn: AsyncConnection | None, how: str, known: Any
) -> None:
    """Whatever the object is: no version of the object says which version its state has."""
    process = await saved(engine, 3)
    if known in ("untyped", "raw"):
        state_type = {"untyped": None, "raw": RawStates()}[known]
        repository = PostgresProcessRepository[Any](engine, state_type=state_type)
        mine: Any = order(1, process.process_id).model_copy(update={"state": STORED[1]})
    else:
        repository, mine = program(engine, known), order(known, process.process_id)
    with pytest.raises(StateTooNewError) as caught:
        await OVERWRITE[how](repository, mine, conn)
    assert (caught.value.found, caught.value.known) == (3, known if isinstance(known, int) else 1)
    assert caught.value.process_id == process.process_id
    if conn is not None:  # the transaction can go on
        await program(engine, 3).update(process, conn)
        await conn.commit()
    assert await stored(engine, process.process_id) == (3, STORED[3])


async def test_an_object_of_the_newer_program_is_not_written_by_the_older_one(engine: AsyncEngine) -> None:
    """It matches its row. It came by pickle, for example, and the older program has put its own state into it."""
    process = await saved(engine, 3)
    again = pickle.loads(pickle.dumps(process))  # noqa: S301 - its own
    assert again.state_version == 3
    mine = order(2, process.process_id).model_copy(update={"version": 1})
    mine.__pydantic_private__ = again.__pydantic_private__
    for write in (program(engine, 2).update, program(engine, 2).advance):
        with pytest.raises(StateTooNewError):
            await write(mine)
    assert await stored(engine, process.process_id) == (3, STORED[3])
    await program(engine, 3).update(again)


async def test_an_object_that_was_read_before_has_changed(engine: AsyncEngine) -> None:
    """The older program may try again. Then it learns that it has to leave the process to the newer one."""
    process = await saved(engine, 1)
    mine = await program(engine, 1).get_by_id(DOMAIN, process.process_id)
    theirs = await program(engine, 3).get_by_id(DOMAIN, process.process_id)
    assert mine is not None
    assert theirs is not None
    await program(engine, 3).update(theirs)
    with pytest.raises(ConcurrentUpdateError):
        await program(engine, 1).update(mine)
    with pytest.raises(StateTooNewError):
        await program(engine, 1).get_by_id(DOMAIN, process.process_id)
    assert await stored(engine, process.process_id) == (3, STORED[3])


@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_an_older_program_that_waits_for_a_newer_one(engine: AsyncEngine, administrator: AsyncEngine) -> None:
    process = await saved(engine, 1)
    theirs = order(3, process.process_id)
    async with engine.begin() as conn:
        await program(engine, 3).update(theirs, conn)
        task = asyncio.create_task(program(engine, 1).update(order(1, process.process_id)))
        await is_waiting_for_a_lock(administrator)
    with pytest.raises(StateTooNewError):
        await task
    assert await stored(engine, process.process_id) == (3, STORED[3])


async def test_with_a_downcaster_the_older_program_goes_on(engine: AsyncEngine) -> None:
    process = await saved(engine, 3)
    declared = StateVersions(SecondOrder, version=2, upcasters={1: split}, downcasters={3: undo_rename})
    repository = PostgresProcessRepository(engine, state_type=declared)
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    assert (found.state, found.state_version) == (ORDERS[2], 3)
    await repository.update(found)
    assert await stored(engine, process.process_id) == (2, STORED[2])


async def test_raw_states_stay_in_their_version(engine: AsyncEngine) -> None:
    raw = PostgresProcessRepository(engine, state_type=RawStates())
    for version, name in ((1, "total"), (2, "total"), (3, "amount")):
        process = await saved(engine, version)
        found = await raw.get_by_id(DOMAIN, process.process_id)
        assert found is not None
        found.state[name] = 43
        await raw.update(found)
        await raw.update(found)
        assert await stored(engine, process.process_id) == (IN_COLUMN[version], STORED[version] | {name: 43})


@pytest.mark.parametrize(("first", "second"), [(1, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("shape", [name for name, (with_reply, sent) in SHAPES.items() if with_reply or sent])
async def test_a_redelivery_is_recognised_by_a_program_of_another_version(
    engine: AsyncEngine, first: int, second: int, shape: str
) -> None:
    """By the reply and the commands. The object differs from its row then, so it must be read again."""
    with_reply, names = SHAPES[shape]
    asked, sent = new_command("reserve"), [new_command(name) for name in names]
    reply: StepReply | Any = reply_to(asked) if with_reply else None
    process = await saved(engine, 1)
    await program(engine, 1).log_step(DOMAIN, process.process_id, asked)
    mine = await program(engine, second).get_by_id(DOMAIN, process.process_id)
    theirs = await program(engine, first).get_by_id(DOMAIN, process.process_id)
    assert mine is not None
    assert theirs is not None
    assert await program(engine, first).advance(theirs, reply=reply, sent=sent)
    written = await stored(engine, process.process_id)
    assert not await program(engine, second).advance(mine, reply=reply, sent=sent)
    with pytest.raises(ConcurrentUpdateError):
        await program(engine, second).update(mine)
    assert await stored(engine, process.process_id) == written == (IN_COLUMN[first], STORED[first])


async def test_a_redelivery_by_the_same_version_goes_on(engine: AsyncEngine) -> None:
    process = await saved(engine, 1)
    for written in (2, 3):
        repository = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[written])
        first = await repository.get_by_id(DOMAIN, process.process_id)
        again = await repository.get_by_id(DOMAIN, process.process_id)
        assert first is not None
        assert again is not None
        sent = new_command()
        assert await repository.advance(first, sent=sent)
        assert not await repository.advance(again, sent=sent)
        assert again.state_version == written
        await repository.update(again)


async def test_what_has_the_same_json_in_two_versions_is_not_the_same(engine: AsyncEngine) -> None:
    """Otherwise an object of the older version would match a row of the newer one."""
    process, sent = await saved(engine, 1), new_command()
    same = StateVersions(FirstOrder, version=2, upcasters={1: dict})
    newer = PostgresProcessRepository(engine, state_type=same)
    mine, theirs = [await newer.get_by_id(DOMAIN, process.process_id) for _ in range(2)]
    assert mine is not None
    assert theirs is not None
    assert await newer.advance(theirs, sent=sent)
    assert not await program(engine, 1).advance(mine, sent=sent)
    with pytest.raises(ConcurrentUpdateError):
        await program(engine, 1).update(mine)


async def test_what_cannot_be_written_in_the_older_version_changes_nothing(engine: AsyncEngine) -> None:
    process = await saved(engine, 1)
    repository = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[1])
    found = await repository.get_by_id(DOMAIN, process.process_id)
    assert found is not None
    found.state.first = "Augusta Ada"
    for write in (repository.update, repository.advance):
        with pytest.raises(InvalidInputError, match="cannot be written as version 1"):
            await write(found)
    with pytest.raises(InvalidInputError, match=r"processes\[0\]\.state\.first: cannot be written as version 1"):
        await repository.save_many([found])
    assert await stored(engine, process.process_id) == (None, STORED[1])


async def test_an_archive_gets_the_state_as_it_is_stored(
    engine: AsyncEngine, database_url: str, server: Server
) -> None:
    ended: dict[str, Any] = {"status": ProcessStatus.COMPLETED, "completed_at": END - days(60), "created_at": NOON}
    for version in (1, 2, 3):
        await program(engine, version).save(order(version).model_copy(update=ended))
    execute(database_url, "UPDATE commandbus.process SET created_at = '2020-01-01'")
    archive: dict[int | None, Any] = {}

    async def keep(_: AsyncConnection, batch: list[ProcessWithTrail]) -> None:
        archive.update({each.process.state_version: each.process.state for each in batch})

    purger = create_async_engine(async_url(as_role(database_url, server.purger)))
    await last(ProcessRetention(purger).purge(DOMAIN, ended_before=END, before_delete=keep))
    await purger.dispose()
    assert archive == STORED


async def test_erasing_keeps_the_version(engine: AsyncEngine, database_url: str, server: Server) -> None:
    """An older program still does not write into what a newer one has ended."""
    process = await saved(engine, 3)
    process.status = ProcessStatus.COMPLETED
    await program(engine, 3).update(process)
    purger = create_async_engine(async_url(as_role(database_url, server.purger)))
    assert await ProcessRetention(purger).erase(DOMAIN, process.process_id)
    await purger.dispose()
    assert await stored(engine, process.process_id) == (3, {})
    with pytest.raises(StateTooNewError):
        await program(engine, 2).update(order(2, process.process_id))
    with pytest.raises(StoredStateError):
        await program(engine, 3).get_by_id(DOMAIN, process.process_id)
