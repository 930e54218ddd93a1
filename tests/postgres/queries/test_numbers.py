"""The backlog, the statistics of steps and the open commands are what one counts by hand."""

import random
from datetime import UTC, datetime, timedelta
from itertools import groupby
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from commandbus_process import (
    InvalidInputError,
    JsonObject,
    OpenCommand,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessFilter,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
    StoredDataError,
    UnindexedFilterError,
)
from tests.support.databases import execute
from tests.support.items import DOMAIN, NOON, Step, new_process

Queries = PostgresProcessQueries[JsonObject]
Repository = PostgresProcessRepository[JsonObject]
Trails = list[tuple[ProcessMetadata, list[ProcessAuditEntry]]]
HOUR = timedelta(hours=1)


def some_trails() -> Trails:
    chance = random.Random(5)  # noqa: S311 - no secret
    now = datetime.now(UTC)

    def some_id() -> UUID:
        return UUID(int=chance.getrandbits(128), version=4)

    def entry(step: str) -> ProcessAuditEntry:
        outcome = chance.choice([None, *ReplyOutcome])
        sent = NOON + timedelta(seconds=chance.randrange(20))
        took = timedelta(milliseconds=chance.randrange(100_000))
        return ProcessAuditEntry(
            step_name=step,
            command_id=some_id(),
            command_type="Do",
            sent_at=sent,
            reply_outcome=outcome,
            received_at=None if outcome is None else sent + took,
        )

    return [
        (
            ProcessMetadata(
                domain=chance.choice([DOMAIN, DOMAIN, "refunds"]),
                process_id=some_id(),
                process_type=chance.choice(["order", "shipment"]),
                status=chance.choice(list(ProcessStatus)),
                current_step=chance.choice([None, "charge"]),
                deadline=chance.choice([None, now - HOUR, now + HOUR]),
                business_key=chance.choice([None, "A-1"]),
                created_at=NOON + timedelta(minutes=chance.randrange(5)),
                state={},
            ),
            [entry(step) for step in ("reserve", "charge", "ship") if chance.random() < 0.8],
        )
        for _ in range(100)
    ]


@pytest.fixture
async def trails(repository: Repository, conn: AsyncConnection | None) -> Trails:
    made = some_trails()
    await repository.save_many((process for process, _ in made), conn)
    steps: list[Step] = [(process.domain, process.process_id, entry) for process, entries in made for entry in entries]
    await repository.log_many(steps, conn)
    return made


@pytest.mark.parametrize("process_type", [None, "order"])
async def test_the_backlog(
    queries: Queries, trails: Trails, conn: AsyncConnection | None, process_type: str | None
) -> None:
    now = datetime.now(UTC)
    live = [
        process
        for process, _ in trails
        if process.domain == DOMAIN and not process.status.is_terminal and process_type in {None, process.process_type}
    ]

    def group(process: ProcessMetadata) -> tuple[str, str, str]:
        return process.process_type, process.status, process.current_step or ""

    expected: list[tuple[Any, ...]] = []
    for key, members in groupby(sorted(live, key=group), group):
        of_group = list(members)
        overdue = [each for each in of_group if each.deadline is not None and each.deadline < now]
        oldest = min(each.created_at for each in of_group)
        expected.append((key[0], key[1], key[2] or None, len(of_group), oldest, len(overdue)))
    found = await queries.backlog(DOMAIN, conn, process_type=process_type)
    assert [
        (each.process_type, each.status, each.current_step, each.processes, each.oldest, each.overdue) for each in found
    ] == expected
    assert len(expected) > 3


async def test_the_statistics_of_steps(queries: Queries, trails: Trails, conn: AsyncConnection | None) -> None:
    wanted = ProcessFilter(domain=DOMAIN, created_after=NOON + timedelta(minutes=1), process_type="order")
    of_step: dict[str, list[ProcessAuditEntry]] = {}
    for process, entries in trails:
        if process.domain == DOMAIN and process.process_type == "order" and process.created_at > NOON:
            for entry in entries:
                of_step.setdefault(entry.step_name, []).append(entry)
    found = await queries.step_statistics(wanted, conn)
    assert [each.step_name for each in found] == sorted(of_step)
    for each in found:
        entries = of_step[each.step_name]
        outcomes = [entry.reply_outcome for entry in entries]
        assert (each.commands, each.open) == (len(entries), outcomes.count(None))
        assert (each.success, each.failed, each.canceled) == tuple(map(outcomes.count, ReplyOutcome))
        took = [entry.duration.total_seconds() for entry in entries if entry.duration is not None]
        hundredths = quantiles(took, n=100, method="inclusive")
        expected = (median(took), hundredths[94], hundredths[98])
        assert None not in {each.median, each.percentile_95, each.percentile_99}
        measured = [part.total_seconds() for part in (each.median, each.percentile_95, each.percentile_99) if part]
        assert measured == pytest.approx(expected, abs=2e-6)


async def test_statistics_of_a_step_without_a_reply(
    queries: Queries, repository: Repository, conn: AsyncConnection | None
) -> None:
    process = new_process()
    entry = ProcessAuditEntry(step_name="charge", command_id=UUID(int=2), command_type="Charge")
    await repository.save(process, conn, sent=entry)
    [found] = await queries.step_statistics(ProcessFilter(domain=DOMAIN, created_after=NOON - HOUR), conn)
    assert (found.commands, found.open, found.median, found.percentile_99) == (1, 1, None, None)


def expected_open(trails: Trails, statuses: set[ProcessStatus]) -> list[OpenCommand]:
    found = [
        OpenCommand(
            domain=process.domain,
            process_id=process.process_id,
            process_type=process.process_type,
            business_key=process.business_key,
            step_name=entry.step_name,
            command_id=entry.command_id,
            command_type=entry.command_type,
            sent_at=entry.sent_at,
        )
        for process, entries in trails
        for entry in entries
        if process.domain == DOMAIN and process.status in statuses and entry.reply_outcome is None
    ]
    return sorted(found, key=lambda each: (each.sent_at, each.process_id, each.command_id))


@pytest.mark.parametrize("limit", [1, 4, 100])
async def test_open_commands_come_once_and_in_order(
    queries: Queries, trails: Trails, conn: AsyncConnection | None, limit: int
) -> None:
    expected = expected_open(trails, {status for status in ProcessStatus if not status.is_terminal})
    assert len(expected) > 10
    found: list[OpenCommand] = []
    page = await queries.open_steps(ProcessFilter(domain=DOMAIN), conn, limit=limit)
    found += page.items
    while page.next is not None:
        page = await queries.open_steps(ProcessFilter(domain=DOMAIN), conn, limit=limit, after=page.next)
        found += page.items
    assert found == expected


async def test_open_commands_sent_before_a_time(queries: Queries, trails: Trails, conn: AsyncConnection | None) -> None:
    before = NOON + timedelta(seconds=9)
    wanted = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.FAILED, ProcessStatus.PENDING])
    with pytest.raises(UnindexedFilterError):
        await queries.open_steps(wanted, conn)
    page = await queries.open_steps(wanted, conn, sent_before=before, allow_scan=True)
    expected = expected_open(trails, {ProcessStatus.FAILED, ProcessStatus.PENDING})
    assert page.items == [each for each in expected if each.sent_at < before]
    first = await queries.open_steps(ProcessFilter(domain=DOMAIN), conn, limit=1)
    with pytest.raises(InvalidInputError, match="another filter"):
        await queries.open_steps(ProcessFilter(domain=DOMAIN), conn, after=first.next, sent_before=before)


async def test_statistics_of_all_that_has_ended_are_a_scan(queries: Queries, conn: AsyncConnection | None) -> None:
    wanted = ProcessFilter(domain=DOMAIN, statuses=[ProcessStatus.COMPLETED])
    with pytest.raises(UnindexedFilterError) as error:
        await queries.step_statistics(wanted, conn)
    assert error.value.conditions == ("trails",)
    assert await queries.step_statistics(wanted, conn, allow_scan=True) == []
    assert await queries.step_statistics(ProcessFilter(domain=DOMAIN, business_key="A-1"), conn) == []


INFINITE = """
UPDATE commandbus.process_audit SET sent_at = '-infinity' WHERE step_name = 'early';
UPDATE commandbus.process_audit SET received_at = 'infinity' WHERE step_name = 'late';
UPDATE commandbus.process_audit SET sent_at = 'infinity', received_at = 'infinity' WHERE step_name = 'never';
UPDATE commandbus.process_audit SET sent_at = '4713-01-01 BC', received_at = '294276-01-01' WHERE step_name = 'long'
"""


async def test_a_time_that_python_cannot_represent_hides_no_other(
    queries: Queries, repository: Repository, database_url: str
) -> None:
    def entry(step: str, number: int, *, is_open: bool = False) -> ProcessAuditEntry:
        outcome = None if is_open else ReplyOutcome.SUCCESS
        received_at = None if is_open else NOON + timedelta(seconds=number)
        return ProcessAuditEntry(
            step_name=step,
            command_id=UUID(int=number),
            command_type="Do",
            sent_at=NOON,
            reply_outcome=outcome,
            received_at=received_at,
        )

    process = new_process()
    await repository.save(process)
    for number, step in enumerate(["charge", "early", "late", "never", "long"], 1):
        await repository.log_step(DOMAIN, process.process_id, entry(step, number))
    await repository.log_step(DOMAIN, process.process_id, entry("early", 8, is_open=True))
    await repository.log_step(DOMAIN, process.process_id, entry("charge", 9, is_open=True))
    execute(database_url, INFINITE)
    found = await queries.step_statistics(
        ProcessFilter(domain=DOMAIN, process_type=process.process_type), allow_scan=True
    )
    medians = {each.step_name: each.median for each in found}
    assert medians.pop("long", None) is not None
    assert medians == {"charge": timedelta(seconds=1), "early": None, "late": None, "never": None}
    assert [(each.commands, each.success, each.open) for each in found if each.step_name == "early"] == [(2, 1, 1)]
    with pytest.raises(StoredDataError, match="sent_at") as error:
        await queries.open_steps(ProcessFilter(domain=DOMAIN))
    assert error.value.process_id == process.process_id
    errors: list[StoredDataError] = []
    first = await queries.open_steps(ProcessFilter(domain=DOMAIN), limit=1, on_unreadable=errors.append)
    assert (first.items, len(errors)) == ([], 1)
    rest = await queries.open_steps(ProcessFilter(domain=DOMAIN), limit=1, after=first.next, on_unreadable="skip")
    assert ([each.command_id for each in rest.items], rest.next) == ([UUID(int=9)], None)
