"""What each method promises, in its own transaction and on the caller's connection."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessStatus,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StepNotFoundError,
    StepReply,
    StoredDataError,
)
from commandbus_process.tables import process as process_table
from commandbus_process.tables import process_audit
from tests.support.databases import write_unchecked
from tests.support.items import DOMAIN, new_process

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Repository = PostgresProcessRepository
Connection = AsyncConnection | None


def sent(step_name: str = "reserve", *, at: datetime = NOON, command_id: UUID | None = None) -> ProcessAuditEntry:
    return ProcessAuditEntry(
        step_name=step_name,
        command_id=command_id or uuid4(),
        command_type="ReserveStock",
        command_data={"quantity": 3},
        sent_at=at,
    )


def reply(
    to: ProcessAuditEntry, outcome: ReplyOutcome = ReplyOutcome.SUCCESS, *, at: datetime = NOON + timedelta(minutes=5)
) -> ProcessAuditEntry:
    return ProcessAuditEntry(
        step_name="reply",
        command_id=to.command_id,
        reply_outcome=outcome,
        reply_data={"reserved": 3},
        received_at=at,
    )


async def logged(repository: Repository, process: ProcessMetadata, entry: ProcessAuditEntry, conn: Connection) -> None:
    await repository.save(process, conn)
    await repository.log_step(process.domain, process.process_id, entry, conn)


async def test_save_stores_every_field(repository: Repository, conn: Connection) -> None:
    process = ProcessMetadata[JsonObject](
        domain=DOMAIN,
        process_id=uuid4(),
        process_type="order",
        state={"total": 12.5, "items": [{"sku": "book"}, None, True]},
        status=ProcessStatus.WAITING_FOR_TSQ,
        current_step="charge",
        error_code="CARD_DECLINED",
        error_message="the card was declined",
        created_at=NOON,
        updated_at=NOON + timedelta(hours=1),
        completed_at=NOON + timedelta(hours=2),
    )
    given = process.model_copy(deep=True)
    await repository.save(process, conn)
    assert process.version == 1
    found = await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert found == given.model_copy(update={"version": 1})


async def test_the_stored_status_is_the_value(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    process.status = ProcessStatus.WAITING_FOR_REPLY
    await repository.save(process)
    async with engine.connect() as connection:
        assert (await connection.execute(select(process_table.c.status))).scalar_one() == "WAITING"


async def test_save_of_a_taken_id_leaves_the_first(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    second = process.model_copy(update={"state": {"total": 99}, "version": None})
    with pytest.raises(ProcessAlreadyExistsError) as caught:
        await repository.save(second, conn)
    assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)
    assert second.version is None
    assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process


async def test_the_same_id_in_another_domain_is_another_process(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    await repository.save(process.model_copy(update={"domain": "refunds"}), conn)
    assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process


async def test_get_by_id_of_an_unknown_process_is_none(repository: Repository, conn: Connection) -> None:
    assert await repository.get_by_id(DOMAIN, uuid4(), conn) is None


async def test_update_writes_what_a_process_manager_changes_and_nothing_else(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    before = process.model_copy(deep=True)
    process.status = ProcessStatus.FAILED
    process.current_step = "charge"
    process.state["total"] = 13
    process.error_code = "CARD_DECLINED"
    process.error_message = "the card was declined"
    process.completed_at = NOON
    process.created_at = NOON
    await repository.update(process, conn)
    found = await repository.get_by_id(DOMAIN, process.process_id, conn)
    assert found is not None
    assert found == process.model_copy(update={"created_at": before.created_at})
    assert found.version == 2


async def test_update_takes_its_time_from_the_database(repository: Repository, engine: AsyncEngine) -> None:
    process = new_process()
    process.updated_at = NOON
    await repository.save(process)
    async with engine.begin() as connection:
        now = (await connection.execute(select(func.now()))).scalar_one()
        await repository.update(process, connection)
    assert process.updated_at == now


async def test_update_of_an_unknown_process(repository: Repository, conn: Connection, process: ProcessMetadata) -> None:
    for version in (None, 1):
        process.version = version
        with pytest.raises(ProcessNotFoundError) as caught:
            await repository.update(process, conn)
        assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)
        assert process.version == version


async def test_two_updates_of_one_object_in_a_row(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    await repository.update(process, conn)
    await repository.update(process, conn)
    assert process.version == 3


async def test_an_update_of_what_somebody_else_changed_writes_nothing(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    stale = process.model_copy(deep=True)
    process.state["by"] = "first"
    await repository.update(process, conn)
    await repository.update(process, conn)
    stale.state["by"] = "second"
    with pytest.raises(ConcurrentUpdateError) as caught:
        await repository.update(stale, conn)
    assert (caught.value.expected_version, caught.value.actual_version) == (1, 3)
    assert stale.version == 1
    assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process


async def test_an_update_of_what_was_never_read_is_unconditional_and_seen_by_readers(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    blind = process.model_copy(deep=True, update={"version": None})
    blind.state["by"] = "blind"
    await repository.update(blind, conn)
    assert blind.version == 2
    with pytest.raises(ConcurrentUpdateError):
        await repository.update(process, conn)


async def test_find_by_status_oldest_first(repository: Repository, conn: Connection) -> None:
    same_time = sorted((uuid4() for _ in range(3)), key=str)
    youngest = new_process()
    youngest.created_at = NOON + timedelta(hours=1)
    expected: list[UUID] = [*same_time, youngest.process_id]
    await repository.save(youngest, conn)
    for process_id, status in zip(reversed(same_time), list(ProcessStatus)[:3], strict=True):
        process = new_process(process_id)
        process.created_at = NOON
        process.status = status
        await repository.save(process, conn)
    other = new_process()
    other.status = ProcessStatus.FAILED
    await repository.save(other, conn)
    await repository.save(youngest.model_copy(update={"domain": "refunds"}), conn)
    statuses = list(ProcessStatus)[:3]
    found = await repository.find_by_status(DOMAIN, statuses, conn)
    assert [process.process_id for process in found] == expected
    assert found[-1] == youngest
    assert [
        process.process_id for process in await repository.find_by_status(DOMAIN, {ProcessStatus.FAILED}, conn)
    ] == [other.process_id]
    assert await repository.find_by_status(DOMAIN, [], conn) == []


async def test_log_step_stores_every_field(repository: Repository, conn: Connection, process: ProcessMetadata) -> None:
    entry = sent()
    replied = ProcessAuditEntry(
        step_name="charge",
        command_id=uuid4(),
        command_type="ChargeCard",
        command_data=None,
        sent_at=NOON + timedelta(seconds=1),
        reply_outcome=ReplyOutcome.FAILED,
        reply_data={"code": 7},
        received_at=NOON + timedelta(seconds=3),
    )
    await logged(repository, process, entry, conn)
    await repository.log_step(DOMAIN, process.process_id, replied, conn)
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry, replied]
    assert (entry.duration, replied.duration) == (None, timedelta(seconds=2))


async def test_log_step_of_an_unknown_process(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    for domain, process_id in ((DOMAIN, uuid4()), ("refunds", process.process_id)):
        with pytest.raises(ProcessNotFoundError) as caught:
            await repository.log_step(domain, process_id, sent(), conn)
        assert (caught.value.domain, caught.value.process_id) == (domain, process_id)
        assert await repository.get_audit_trail(domain, process_id, conn) == []


async def test_logging_the_same_entry_again_changes_nothing(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    entry = sent()
    entry.command_data = {"small": 1e-7, "text": "é\n"}
    await logged(repository, process, entry, conn)
    await repository.log_step(DOMAIN, process.process_id, entry, conn)
    later = entry.model_copy(update={"sent_at": NOON + timedelta(hours=1)})
    await repository.log_step(DOMAIN, process.process_id, later, conn)
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply(entry), conn)
    await repository.log_step(DOMAIN, process.process_id, entry, conn)
    trail = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
    assert [(found.sent_at, found.reply_outcome) for found in trail] == [(NOON, ReplyOutcome.SUCCESS)]


@pytest.mark.parametrize(
    "difference",
    [
        {"step_name": "other"},
        {"command_type": "Other"},
        {"command_data": {"quantity": 4}},
        {"command_data": None},
        {"reply_outcome": ReplyOutcome.SUCCESS},
    ],
    ids=str,
)
async def test_another_entry_under_a_logged_command_id(
    repository: Repository, conn: Connection, process: ProcessMetadata, difference: dict[str, object]
) -> None:
    entry = sent()
    await logged(repository, process, entry, conn)
    other = entry.model_copy(update=difference)
    with pytest.raises(StepAlreadyLoggedError) as caught:
        await repository.log_step(DOMAIN, process.process_id, other, conn)
    error = caught.value
    assert (error.domain, error.process_id, error.command_id) == (DOMAIN, process.process_id, entry.command_id)
    assert (error.recorded, error.given) == (entry, other)
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry]


async def test_a_command_id_is_unique_within_a_process_only(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    entry = sent()
    await logged(repository, process, entry, conn)
    other = new_process()
    await logged(repository, other, entry, conn)
    assert await repository.get_audit_trail(DOMAIN, other.process_id, conn) == [entry]


async def test_a_reply_records_outcome_data_and_time_and_nothing_else(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    entry, untouched = sent(), sent("charge", at=NOON + timedelta(hours=1))
    await logged(repository, process, entry, conn)
    await repository.log_step(DOMAIN, process.process_id, untouched, conn)
    given = reply(entry)
    given.command_type, given.command_data, given.sent_at = "Other", {"other": 1}, NOON - timedelta(days=1)
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, given, conn)
    answered = entry.model_copy(
        update={
            "reply_outcome": ReplyOutcome.SUCCESS,
            "reply_data": {"reserved": 3},
            "received_at": NOON + timedelta(minutes=5),
        }
    )
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [answered, untouched]


async def test_a_reply_without_a_time_was_received_now(repository: Repository, conn: Connection) -> None:
    process, entry = new_process(), sent()
    await logged(repository, process, entry, conn)
    answer = ProcessAuditEntry(step_name="s", command_id=entry.command_id, reply_outcome=ReplyOutcome.CANCELED)
    before = datetime.now(UTC)
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, answer, conn)
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
    assert found.received_at is not None
    assert before <= found.received_at <= datetime.now(UTC)
    assert found.reply_data is None


async def test_a_reply_to_an_unknown_command(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    entry = sent()
    await logged(repository, process, entry, conn)
    unknown = uuid4()
    for process_id, command_id in ((process.process_id, unknown), (uuid4(), entry.command_id)):
        with pytest.raises(StepNotFoundError) as caught:
            await repository.update_step_reply(
                DOMAIN, process_id, command_id, StepReply(command_id, ReplyOutcome.SUCCESS), conn
            )
        error = caught.value
        assert (error.domain, error.process_id, error.command_id) == (DOMAIN, process_id, command_id)
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry]


async def test_the_same_reply_again_changes_nothing(repository: Repository, conn: Connection) -> None:
    process, entry = new_process(), sent()
    await logged(repository, process, entry, conn)
    first = reply(entry)
    first.reply_data = {"small": 1e-7}
    again = first.model_copy(update={"received_at": NOON + timedelta(days=1)})
    for each in (first, again):
        await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, each, conn)
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
    assert found.received_at == first.received_at


@pytest.mark.parametrize(
    "difference",
    [{"reply_outcome": ReplyOutcome.FAILED}, {"reply_data": {"reserved": 2}}, {"reply_data": None}],
    ids=str,
)
async def test_another_reply_conflicts_and_the_first_stays(
    repository: Repository, conn: Connection, process: ProcessMetadata, difference: dict[str, object]
) -> None:
    entry = sent()
    await logged(repository, process, entry, conn)
    first = reply(entry)
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, first, conn)
    [recorded] = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
    other = first.model_copy(update=difference)
    with pytest.raises(ReplyConflictError) as caught:
        await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, other, conn)
    error = caught.value
    assert (error.domain, error.process_id, error.command_id) == (DOMAIN, process.process_id, entry.command_id)
    assert (error.recorded, error.given) == (recorded, other)
    assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [recorded]


async def test_the_trail_is_ordered_by_time_then_by_logging(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    late, *same, early = [
        sent("late", at=NOON + timedelta(seconds=1)),
        *(sent(f"same {number}") for number in range(5)),
        sent("early", at=NOON - timedelta(seconds=1)),
    ]
    await repository.save(process, conn)
    for entry in (late, *same, early):
        await repository.log_step(DOMAIN, process.process_id, entry, conn)
    trail = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
    assert [entry.step_name for entry in trail] == ["early", "same 0", "same 1", "same 2", "same 3", "same 4", "late"]


async def test_completed_steps_are_the_successes_in_the_order_of_logging_each_time(
    repository: Repository, conn: Connection, process: ProcessMetadata
) -> None:
    await repository.save(process, conn)
    outcomes = [
        ("late", ReplyOutcome.SUCCESS, NOON + timedelta(hours=1)),
        ("reserve", ReplyOutcome.SUCCESS, NOON),
        ("charge", ReplyOutcome.FAILED, NOON),
        ("pack", ReplyOutcome.CANCELED, NOON),
        ("reserve", ReplyOutcome.SUCCESS, NOON),
    ]
    for name, outcome, at in outcomes:
        entry = sent(name, at=at)
        await repository.log_step(DOMAIN, process.process_id, entry, conn)
        await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply(entry, outcome), conn)
    await repository.log_step(DOMAIN, process.process_id, sent("open"), conn)
    assert await repository.get_completed_steps(DOMAIN, process.process_id, conn) == ["late", "reserve", "reserve"]
    assert await repository.get_completed_steps(DOMAIN, uuid4(), conn) == []


async def test_times_come_back_in_utc_in_any_time_zone_of_the_session(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    await repository.save(process)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL TIME ZONE 'Asia/Kathmandu'")
        found = await repository.get_by_id(DOMAIN, process.process_id, connection)
        assert found is not None
        assert found.created_at.tzinfo == UTC
        assert found == process
        for write in (repository.update, repository.advance):
            await write(found, connection)
            assert found.updated_at.tzinfo == UTC
            assert found == await repository.get_by_id(DOMAIN, process.process_id, connection)


async def test_what_the_database_sets_counts_as_set(repository: Repository, process: ProcessMetadata) -> None:
    """So that a dump without what was never set has it."""
    given = process.model_fields_set - {"version", "updated_at"}
    fresh = ProcessMetadata[JsonObject](**{name: getattr(process, name) for name in given})
    await repository.save(fresh)
    assert fresh.model_fields_set == given | {"version", "updated_at"}
    await repository.update(fresh)
    assert fresh.model_fields_set == given | {"version", "updated_at"}


async def test_a_status_of_newer_software_is_an_error_that_names_the_row(
    repository: Repository, database_url: str, process: ProcessMetadata
) -> None:
    await repository.save(process)
    write_unchecked(database_url, "UPDATE commandbus.process SET status = 'PAUSED'")
    with pytest.raises(StoredDataError, match="status") as caught:
        await repository.get_by_id(DOMAIN, process.process_id)
    assert (caught.value.domain, caught.value.process_id) == (DOMAIN, process.process_id)


async def test_an_outcome_of_newer_software_is_an_error_that_names_the_command(
    repository: Repository, database_url: str, process: ProcessMetadata
) -> None:
    entry = sent()
    await logged(repository, process, entry, None)
    write_unchecked(database_url, "UPDATE commandbus.process_audit SET reply_outcome = 'PARTIAL', received_at = now()")
    with pytest.raises(StoredDataError, match=rf"{entry.command_id}.*reply_outcome"):
        await repository.get_audit_trail(DOMAIN, process.process_id)


async def test_a_json_null_that_other_software_wrote_is_no_data(
    repository: Repository, engine: AsyncEngine, process: ProcessMetadata
) -> None:
    entry = sent()
    entry.command_data = None
    await logged(repository, process, entry, None)
    first = reply(entry)
    first.reply_data = None
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, first)
    async with engine.begin() as connection:
        await connection.execute(update(process_audit).values(reply_data=JSONB.NULL))
    await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, first)
    [found] = await repository.get_audit_trail(DOMAIN, process.process_id)
    assert (found.command_data, found.reply_data) == (None, None)


async def test_rows_of_software_that_writes_plain_sql_are_read(repository: Repository, engine: AsyncEngine) -> None:
    process_id, command_id = uuid4(), uuid4()
    async with engine.begin() as connection:
        await connection.execute(
            insert(process_table).values(domain=DOMAIN, process_id=process_id, process_type="order")
        )
        await connection.execute(
            insert(process_audit).values(
                domain=DOMAIN,
                process_id=process_id,
                step_name="reserve",
                command_id=command_id,
                command_type="ReserveStock",
                sent_at=NOON,
            )
        )
    found = await repository.get_by_id(DOMAIN, process_id)
    assert found is not None
    assert (found.state, found.status, found.version) == ({}, ProcessStatus.PENDING, 1)
    await repository.update(found)
    entry = ProcessAuditEntry(step_name="reserve", command_id=command_id, command_type="ReserveStock", sent_at=NOON)
    assert await repository.get_audit_trail(DOMAIN, process_id) == [entry]
