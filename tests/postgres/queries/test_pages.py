"""Pages show each process that matches once, in their order, and a cursor fits only its own list."""

import base64
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessFilter,
    ProcessMetadata,
    ProcessStatus,
    ProcessSummary,
    StoredDataError,
    UnindexedFilterError,
)
from commandbus_process.tables import process as process_table
from tests.support.items import DOMAIN, NOON, new_entry, new_process

Queries = PostgresProcessQueries[JsonObject]
Repository = PostgresProcessRepository[JsonObject]
ENDED = [status for status in ProcessStatus if status.is_terminal]
LIVE = [status for status in ProcessStatus if not status.is_terminal]


def some_processes(count: int = 120) -> list[ProcessMetadata]:
    """Processes of all kinds; many of them have the same times."""
    chance = random.Random(11)  # noqa: S311 - no secret
    return [
        ProcessMetadata(
            domain=chance.choice([DOMAIN, DOMAIN, DOMAIN, "refunds"]),
            process_id=UUID(int=chance.getrandbits(128), version=4),
            process_type=chance.choice(["order", "shipment"]),
            status=chance.choice(list(ProcessStatus)),
            current_step=chance.choice([None, "reserve", "charge"]),
            business_key=chance.choice([None, "A-1", "A-2"]),
            deadline=chance.choice([None, NOON + timedelta(minutes=chance.randrange(4))]),
            state={"number": number},
            created_at=NOON + timedelta(seconds=chance.randrange(10)),
            updated_at=NOON + timedelta(minutes=chance.randrange(10)),
        )
        for number in range(count)
    ]


def fits(process: ProcessMetadata, wanted: ProcessFilter) -> bool:
    return (
        process.domain == wanted.domain
        and (wanted.statuses is None or process.status in wanted.statuses)
        and wanted.process_type in {None, process.process_type}
        and wanted.current_step in {None, process.current_step}
        and wanted.business_key in {None, process.business_key}
        and (wanted.created_after is None or process.created_at >= wanted.created_after)
        and (wanted.created_before is None or process.created_at < wanted.created_before)
        and (wanted.updated_before is None or process.updated_at < wanted.updated_before)
        and (
            wanted.deadline_before is None
            or (process.deadline is not None and process.deadline < wanted.deadline_before)
        )
    )


def order_of(wanted: ProcessFilter) -> Callable[[ProcessMetadata], Any]:
    if wanted.deadline_before is not None:
        return lambda process: (process.deadline, process.process_id)
    return lambda process: (process.created_at, process.process_id)


FILTERS: dict[str, dict[str, Any]] = {
    "the domain": {},
    "one status": {"statuses": [ProcessStatus.COMPLETED]},
    "some statuses": {"statuses": ENDED},
    "no status": {"statuses": []},
    "a type that has not ended": {"statuses": LIVE, "process_type": "order"},
    "a step that has not ended": {"statuses": LIVE, "current_step": "charge"},
    "a business key": {"business_key": "A-1"},
    "a business key in a status": {"business_key": "A-2", "statuses": ENDED},
    "a range": {"created_after": NOON + timedelta(seconds=2), "created_before": NOON + timedelta(seconds=6)},
    "a type in a range": {"created_after": NOON + timedelta(seconds=5), "process_type": "shipment"},
    "updated": {"statuses": LIVE, "updated_before": NOON + timedelta(minutes=5)},
    "a deadline": {"deadline_before": NOON + timedelta(minutes=2)},
    "a deadline and everything else": {
        "deadline_before": NOON + timedelta(minutes=3),
        "statuses": [*LIVE, ProcessStatus.FAILED],
        "process_type": "order",
        "current_step": "charge",
        "created_before": NOON + timedelta(seconds=9),
        "updated_before": NOON + timedelta(minutes=9),
    },
}


@pytest.fixture(params=FILTERS)
def wanted(request: pytest.FixtureRequest) -> ProcessFilter:
    conditions = FILTERS[request.param]
    return ProcessFilter(domain=DOMAIN, **conditions)


async def all_pages(queries: Queries, wanted: ProcessFilter, **how: Any) -> list[ProcessSummary]:
    items: list[ProcessSummary] = []
    page = await queries.page(wanted, **how)
    items += page.items
    while page.next is not None:
        assert page.items, "only the last page can be empty"
        page = await queries.page(wanted, after=page.next, **how)
        items += page.items
    return items


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_pages_show_what_matches_once_and_in_order(
    queries: Queries,
    repository: Repository,
    conn: AsyncConnection | None,
    wanted: ProcessFilter,
    limit: int,
    newest_first: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    processes = some_processes()
    await repository.save_many(processes, conn)
    expected = sorted((each for each in processes if fits(each, wanted)), key=order_of(wanted), reverse=newest_first)
    assert expected or wanted.statuses == []
    found = await all_pages(queries, wanted, conn=conn, limit=limit, newest_first=newest_first)
    assert [each.process_id for each in found] == [each.process_id for each in expected]
    for summary, process in zip(found, expected, strict=True):
        assert summary.model_dump(exclude={"open_commands", "in_step_since"}) == process.model_dump(exclude={"state"})
        assert summary.open_commands is None


async def test_a_stream_and_a_count_have_what_the_pages_have(
    queries: Queries, repository: Repository, conn: AsyncConnection | None, wanted: ProcessFilter
) -> None:
    processes = some_processes()
    await repository.save_many(processes, conn)
    expected = sorted((each for each in processes if fits(each, wanted)), key=order_of(wanted))
    for consistent in (False, True):
        async with queries.stream(wanted, conn, consistent=consistent) as stream:
            assert [each async for each in stream] == expected
    count = await queries.count(wanted, conn)
    assert (count.value, count.exact) == (len(expected), True)
    if len(expected) > 1:
        fewer = await queries.count(wanted, conn, at_most=len(expected) - 1)
        assert (fewer.value, fewer.exact) == (len(expected) - 1, False)
        same = await queries.count(wanted, conn, at_most=len(expected))
        assert (same.value, same.exact) == (len(expected), True)


async def test_steps_are_read_from_the_trail(
    queries: Queries, repository: Repository, conn: AsyncConnection | None
) -> None:
    def logged(*steps: str) -> list[ProcessAuditEntry]:
        return [new_entry(step, sent_at=NOON + timedelta(minutes=number)) for number, step in enumerate(steps)]

    trails: dict[str, tuple[str | None, list[ProcessAuditEntry]]] = {
        "none": (None, []),
        "not begun": ("reserve", []),
        "one": ("reserve", logged("reserve")),
        "second of two": ("charge", logged("reserve", "charge", "charge")),
        "came back": ("reserve", logged("reserve", "charge", "reserve", "reserve")),
    }
    for name, (step, entries) in trails.items():
        process = new_process().model_copy(update={"business_key": name, "current_step": step})
        await repository.save(process, conn, sent=entries)
        if name == "came back":
            entry = entries[0].model_copy(update={"reply_outcome": "SUCCESS", "received_at": NOON})
            await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, entry, conn)
    page = await queries.page(ProcessFilter(domain=DOMAIN), conn, steps=True)
    assert {each.business_key: (each.open_commands, each.in_step_since) for each in page.items} == {
        "none": (0, None),
        "not begun": (0, None),
        "one": (1, NOON),
        "second of two": (3, NOON + timedelta(minutes=1)),
        "came back": (3, NOON + timedelta(minutes=2)),
    }


async def test_a_cursor_of_another_list_is_an_error(queries: Queries, repository: Repository) -> None:
    await repository.save_many(some_processes())
    wanted = ProcessFilter(domain=DOMAIN, created_after=NOON)
    page = await queries.page(wanted, limit=2)
    assert page.next is not None
    others: list[dict[str, Any]] = [
        {"filter": replace(wanted, domain="refunds")},
        {"filter": replace(wanted, statuses=LIVE)},
        {"filter": replace(wanted, process_type="order")},
        {"filter": replace(wanted, created_after=NOON + timedelta(microseconds=1))},
        {"filter": replace(wanted, deadline_before=NOON)},
        {"filter": wanted, "newest_first": True},
    ]
    for other in others:
        arguments = other
        with pytest.raises(InvalidInputError, match="another filter or order"):
            await queries.page(**arguments, after=page.next)
    for damaged in ("", "x", page.next[:-1], page.next[:20], page.next + "A", "é", page.next[1:]):
        with pytest.raises(InvalidInputError, match="after: "):
            await queries.page(wanted, after=damaged)
    same = replace(wanted, statuses=list(reversed(ProcessStatus)), created_after=NOON.astimezone(None))
    assert (await queries.page(same, limit=2, after=page.next)).items


async def test_a_cursor_keeps_times_that_python_cannot_represent(
    queries: Queries, administrator: AsyncEngine, repository: Repository
) -> None:
    for _ in range(5):
        await repository.save(new_process())
    times = ["infinity", "-infinity", "20000-01-01 12:00:00.000001+00", "0044-03-15 00:00:00+00 BC"]
    async with administrator.begin() as connection:
        ids = list(await connection.scalars(process_table.select().with_only_columns(process_table.c.process_id)))
        for each, time in zip(ids, times, strict=False):
            await connection.execute(
                text("UPDATE commandbus.process SET created_at = CAST(:time AS timestamptz) WHERE process_id = :id"),
                {"time": time, "id": each},
            )
    wanted = ProcessFilter(domain=DOMAIN)
    errors: list[StoredDataError] = []
    found: list[ProcessSummary] = []
    page = await queries.page(wanted, limit=1, on_unreadable=errors.append)
    found += page.items
    while page.next is not None:
        page = await queries.page(wanted, limit=1, after=page.next, on_unreadable=errors.append)
        found += page.items
    assert {error.process_id for error in errors} == set(ids[:4])
    assert [each.process_id for each in found] == ids[4:]
    with pytest.raises(StoredDataError):
        await queries.page(wanted)


async def test_no_damage_to_a_cursor_aborts_the_callers_transaction(
    queries: Queries, repository: Repository, engine: AsyncEngine
) -> None:
    await repository.save_many(some_processes())
    chance = random.Random(17)  # noqa: S311 - no secret
    wanted = ProcessFilter(domain=DOMAIN)
    page = await queries.page(wanted, limit=2)
    assert page.next is not None
    raw = base64.urlsafe_b64decode(page.next + "=" * (-len(page.next) % 4))
    refused = 0
    async with engine.connect() as conn:
        for _ in range(500):
            damaged = bytearray(raw)
            for _ in range(chance.randint(1, 3)):  # the key is at the end: digits, signs and letters
                damaged[-chance.randint(1, 25)] = chance.choice(b"0123456789+-:T. BC")
            after = base64.urlsafe_b64encode(damaged).rstrip(b"=").decode()
            try:
                await queries.page(wanted, conn, after=after)
            except InvalidInputError:
                refused += 1
        assert (await queries.count(wanted, conn)).value > 0
    assert 0 < refused < 500


TERMINAL = [ProcessStatus.COMPLETED]


@pytest.mark.parametrize(
    ("conditions", "named"),
    [
        ({"process_type": "order"}, ("process_type",)),
        ({"statuses": TERMINAL, "current_step": "charge"}, ("current_step",)),
        ({"statuses": [*LIVE, *TERMINAL], "updated_before": NOON}, ("updated_before",)),
        ({"created_before": NOON, "process_type": "order", "current_step": "a"}, ("process_type", "current_step")),
    ],
)
async def test_a_filter_that_no_index_serves_is_an_error(
    queries: Queries, conditions: dict[str, Any], named: tuple[str, ...]
) -> None:
    wanted = ProcessFilter(domain=DOMAIN, **conditions)
    for read in (queries.page, queries.count):
        with pytest.raises(UnindexedFilterError) as error:
            await read(wanted)
        assert error.value.conditions == named
        await read(wanted, allow_scan=True)
    with pytest.raises(UnindexedFilterError):
        async with queries.stream(wanted):
            pass
    async with queries.stream(wanted, allow_scan=True) as stream:
        assert [each async for each in stream] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": ""},
        {"statuses": ["DONE"]},
        {"statuses": "COMPLETED"},
        {"process_type": 1},
        {"business_key": ""},
        {"created_after": datetime(2026, 3, 1)},  # noqa: DTZ001 - the error
        {"deadline_before": "2026-03-01"},
        {"created_after": NOON, "created_before": NOON - timedelta(seconds=1)},
    ],
)
async def test_a_filter_that_does_not_fit_is_an_error(queries: Queries, changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"domain": DOMAIN, **changes}
    wanted = ProcessFilter(**arguments)
    with pytest.raises(InvalidInputError):
        await queries.page(wanted)
    with pytest.raises(InvalidInputError):
        await queries.count(wanted)


@pytest.mark.parametrize("how", [{"limit": 0}, {"limit": 100_001}, {"on_unreadable": "no"}, {"after": 3}])
async def test_an_argument_that_does_not_fit_is_an_error(queries: Queries, how: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        await queries.page(ProcessFilter(domain=DOMAIN), **how)


async def test_get_by_ids(repository: Repository, conn: AsyncConnection | None) -> None:
    processes = [new_process() for _ in range(3)]
    await repository.save_many(processes, conn)
    first, second, third = (each.process_id for each in processes)
    found = await repository.get_by_ids(DOMAIN, [third, uuid4(), first, third], conn)
    assert list(found.items()) == [(third, processes[2]), (first, processes[0])]
    assert await repository.get_by_ids("refunds", [first, second], conn) == {}
    assert await repository.get_by_ids(DOMAIN, [], conn) == {}
    ids: Any = [first, str(second)]
    with pytest.raises(InvalidInputError, match=r"process_ids\[1\]"):
        await repository.get_by_ids(DOMAIN, ids, conn)
    found[first].state["total"] = 1
    await repository.update(found[first], conn)


async def test_claim_by_deadline_key_and_step(repository: Repository, engine: AsyncEngine) -> None:
    processes = some_processes()
    await repository.save_many(processes)
    async with engine.connect() as conn, conn.begin():
        wanted = ProcessFilter(domain=DOMAIN, statuses=LIVE, deadline_before=NOON + timedelta(minutes=3))
        expected = sorted((each for each in processes if fits(each, wanted)), key=order_of(wanted))
        assert len(expected) > 5
        first = await repository.claim(DOMAIN, LIVE, conn, limit=5, deadline_before=wanted.deadline_before)
        assert first == expected[:5]
        async with engine.connect() as other, other.begin():
            rest = await repository.claim(DOMAIN, LIVE, other, limit=500, deadline_before=wanted.deadline_before)
            assert rest == expected[5:]
    for statuses in (LIVE, LIVE[:1]):
        for changes in (
            {"business_key": "A-1"},
            {"current_step": "charge"},
            {"business_key": "A-2", "current_step": "charge"},
        ):
            conditions: dict[str, Any] = changes
            wanted = ProcessFilter(domain=DOMAIN, statuses=statuses, **conditions)
            expected = sorted((each for each in processes if fits(each, wanted)), key=order_of(wanted))
            async with engine.connect() as conn, conn.begin():
                assert await repository.claim(DOMAIN, statuses, conn, limit=500, **conditions) == expected
