"""A type changes in three ways while old and new programs handle the same orders: a field is renamed, one is split, and
one is removed. The page `docs/state.md` explains the steps.
"""

import asyncio
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    PostgresProcessRepository,
    ProcessMetadata,
    ProcessStatus,
    StateTooNewError,
    StateVersions,
)
from tests.support.advancing import new_command
from tests.support.items import DOMAIN
from tests.support.states import process_with
from tests.support.versions import THIRD_WRITING, FirstOrder, ThirdOrder, order

FEWER = 100
Program = PostgresProcessRepository[Any]


async def saved_orders(repository: Program, number_of_orders: int) -> list[UUID]:
    """Orders of different people and amounts, by the first program."""
    processes = [order(1) for _ in range(number_of_orders)]
    for number, process in enumerate(processes):
        process.state = FirstOrder(name=f"Ada{number} Lovelace", total=number)
    await repository.save_many(processes)
    return [process.process_id for process in processes]


def change(state: FirstOrder | ThirdOrder, step: str) -> None:
    """What every program does with an order: it takes a step, which costs 1."""
    state.done.append(step)
    if isinstance(state, FirstOrder):
        assert state.count == len(state.done) - 1  # though the new program does not have the field
        state.count += 1
        state.total += 1
    else:
        state.amount += 1


async def write(program: Program, process: ProcessMetadata[Any], step: str) -> None:
    """Write half of the orders in one way, and half in the other."""
    if is_advanced(process.process_id):
        assert await program.advance(process, sent=new_command(step))
    else:
        await program.update(process)


def is_advanced(process_id: UUID) -> bool:
    return process_id.int % 2 == 1


async def handle_all(program: Program, ids: list[UUID], step: str, both: asyncio.Barrier | None = None) -> int:
    """Take a step of each order, again and again until nobody else is in the way. Return how often somebody was.

    If there is a barrier, two programs have always read an order before one of them writes it.
    """
    conflicts = 0
    for process_id in ids:
        is_first, is_done = True, False
        while not is_done:
            process = await program.get_by_id(DOMAIN, process_id)
            assert process is not None
            if both is not None and is_first:
                await both.wait()
            is_first = False
            change(process.state, step)
            try:
                await write(program, process, step)
                is_done = True
            except ConcurrentUpdateError:
                conflicts += 1
    return conflicts


async def versions_in_use(engine: AsyncEngine) -> dict[int | None, int]:
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT state_version, count(*) AS number FROM commandbus.process GROUP BY state_version")
        )
        return {row.state_version: row.number for row in found}


async def everything(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT each::text FROM commandbus.process AS each ORDER BY process_id"))
        return list(found)


async def test_two_versions_side_by_side_lose_nothing(engine: AsyncEngine) -> None:
    orders = 400
    first = PostgresProcessRepository[Any](engine, state_type=FirstOrder)
    writes_first = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[1])
    third = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[3])
    ids = await saved_orders(first, orders)

    async def side_by_side(one: Program, other: Program, number: int) -> int:
        both = asyncio.Barrier(2)
        return sum(
            await asyncio.gather(
                handle_all(one, ids, f"{number} by one", both),
                handle_all(other, ids, f"{number} by other", both),
            )
        )

    # The new program is rolled out. It reads all versions, and writes the first. One of both is late with each order.
    assert await side_by_side(first, writes_first, 1) == orders
    assert await versions_in_use(engine) == {None: orders}
    # No old program runs any more. The new one is rolled out again, and writes its own version.
    assert await side_by_side(writes_first, third, 2) == orders
    assert set(await versions_in_use(engine)) <= {None, 3}
    # Now only that one runs.
    assert await side_by_side(third, third, 3) == orders
    assert await versions_in_use(engine) == {3: orders}

    found = await third.get_by_ids(DOMAIN, ids)
    for number, process_id in enumerate(ids):
        state: ThirdOrder = found[process_id].state
        steps = [f"{phase} by {who}" for phase in (1, 2, 3) for who in ("one", "other")]
        assert sorted(state.done) == steps
        assert (state.first, state.last, state.amount) == (f"Ada{number}", "Lovelace", number + len(steps))
        trail = [entry.step_name for entry in await third.get_audit_trail(DOMAIN, process_id)]
        assert trail == (state.done if is_advanced(process_id) else [])


async def test_an_old_program_that_was_forgotten_destroys_nothing(engine: AsyncEngine) -> None:
    first = PostgresProcessRepository[Any](engine, state_type=FirstOrder)
    third = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[3])
    ids = await saved_orders(first, FEWER)
    old = await first.get_by_ids(DOMAIN, ids)
    refused: list[type[Exception]] = []

    async def forgotten() -> None:
        """It has read all orders before, and tries to write each of them in every way that it has."""
        for process in old.values():
            await asyncio.sleep(0)
            change(process.state, "forgotten")
            for attempt in (process, process.model_copy(update={"version": None})):
                try:
                    await first.update(attempt)
                except (ConcurrentUpdateError, StateTooNewError) as error:
                    refused.append(type(error))

    new = await third.get_by_ids(DOMAIN, ids)
    for process in new.values():
        change(process.state, "new")
        await third.update(process)
    before = await everything(engine)
    await forgotten()
    assert await everything(engine) == before
    assert refused == [ConcurrentUpdateError, StateTooNewError] * FEWER
    errors: list[Any] = []
    assert await first.find_by_status(DOMAIN, list(ProcessStatus), on_unreadable=errors.append) == []
    assert [(type(error), error.found, error.known) for error in errors] == [(StateTooNewError, 3, 1)] * FEWER


async def test_a_forgotten_program_beside_the_new_one(engine: AsyncEngine) -> None:
    """Both at the same time. What the old one did before the new one took the order over stays, and nothing after."""
    first = PostgresProcessRepository[Any](engine, state_type=FirstOrder)
    third = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[3])
    ids = await saved_orders(first, FEWER)
    done: dict[UUID, int] = dict.fromkeys(ids, 0)

    async def forgotten() -> int:
        refused = 0
        for process_id in [*ids, *ids]:
            try:
                await handle_all(first, [process_id], "old")
                done[process_id] += 1
            except StateTooNewError:
                refused += 1
        return refused

    refused, _ = await asyncio.gather(forgotten(), handle_all(third, list(reversed(ids)), "new"))
    assert refused > 0
    found = await third.get_by_ids(DOMAIN, ids)
    assert {each: found[each].state.done.count("old") for each in ids} == done
    assert {found[each].state.done[-1] for each in ids} == {"new"}
    assert {number: found[each].state.amount for number, each in enumerate(ids)} == {
        number: number + 1 + done[each] for number, each in enumerate(ids)
    }


async def test_the_last_upcasters_go_when_no_row_needs_them(engine: AsyncEngine) -> None:
    first = PostgresProcessRepository[Any](engine, state_type=FirstOrder)
    third = PostgresProcessRepository[Any](engine, state_type=THIRD_WRITING[3])
    ids = await saved_orders(first, FEWER)
    for process in (await third.get_by_ids(DOMAIN, ids)).values():
        await third.update(process)
    without = PostgresProcessRepository(engine, state_type=StateVersions(ThirdOrder, version=3))
    found = await without.get_by_ids(DOMAIN, ids)
    assert [found[each].state.amount for each in ids] == list(range(FEWER))


class Euros(BaseModel):
    total: int


class Cents(BaseModel):
    total: int


async def test_an_old_state_that_happens_to_fit_is_converted_too(engine: AsyncEngine) -> None:
    """In a list of nothing but old rows, which have no version."""
    old = PostgresProcessRepository[Any](engine, state_type=Euros)
    processes = [process_with(Euros(total=number)) for number in range(3)]
    await old.save_many(processes)
    in_cents = StateVersions(Cents, version=2, upcasters={1: lambda state: {"total": state["total"] * 100}})
    for state_type in (in_cents, {"order": in_cents}):
        repository = PostgresProcessRepository[Any](engine, state_type=state_type)
        found = await repository.get_by_ids(DOMAIN, [each.process_id for each in processes])
        assert [each.state.total for each in found.values()] == [0, 100, 200]
