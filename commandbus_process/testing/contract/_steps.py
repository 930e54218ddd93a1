"""The audit trail: steps, replies, and what must be undone."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from commandbus_process.errors import (
    InvalidInputError,
    ProcessNotFoundError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from commandbus_process.models import (
    ProcessAuditEntry,
    ProcessMetadata,
    ReplyOutcome,
    StepReply,
)
from commandbus_process.testing.contract._given import (
    DOMAIN,
    NOON,
    Connection,
    Given,
    Repository,
    logged,
    new_process,
    reply,
    sent,
)


class StepsContract(Given):
    """The audit trail: steps, replies, and what must be undone."""

    async def test_log_step_stores_every_field(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
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
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        for domain, process_id in ((DOMAIN, uuid4()), ("refunds", process.process_id)):
            with pytest.raises(ProcessNotFoundError) as caught:
                await repository.log_step(domain, process_id, sent(), conn)
            assert (caught.value.domain, caught.value.process_id) == (domain, process_id)
            assert await repository.get_audit_trail(domain, process_id, conn) == []

    async def test_logging_the_same_entry_again_changes_nothing(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
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
        self, repository: Repository, conn: Connection, process: ProcessMetadata, difference: dict[str, object]
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
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        entry = sent()
        await logged(repository, process, entry, conn)
        other = new_process()
        await logged(repository, other, entry, conn)
        assert await repository.get_audit_trail(DOMAIN, other.process_id, conn) == [entry]

    async def test_a_reply_records_outcome_data_and_time_and_nothing_else(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
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

    async def test_a_reply_without_a_time_was_received_now(self, repository: Repository, conn: Connection) -> None:
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
        self, repository: Repository, conn: Connection, process: ProcessMetadata
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

    async def test_the_same_reply_again_changes_nothing(self, repository: Repository, conn: Connection) -> None:
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
        self, repository: Repository, conn: Connection, process: ProcessMetadata, difference: dict[str, object]
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
        self, repository: Repository, conn: Connection, process: ProcessMetadata
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
        assert [entry.step_name for entry in trail] == [
            "early",
            "same 0",
            "same 1",
            "same 2",
            "same 3",
            "same 4",
            "late",
        ]

    async def test_completed_steps_are_the_successes_in_the_order_of_logging_each_time(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
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
            await repository.update_step_reply(
                DOMAIN, process.process_id, entry.command_id, reply(entry, outcome), conn
            )
        await repository.log_step(DOMAIN, process.process_id, sent("open"), conn)
        assert await repository.get_completed_steps(DOMAIN, process.process_id, conn) == ["late", "reserve", "reserve"]
        assert await repository.get_completed_steps(DOMAIN, uuid4(), conn) == []

    async def test_what_must_be_undone(self, repository: Repository, conn: Connection) -> None:
        process = new_process()
        await repository.save(process, conn)
        key = DOMAIN, process.process_id
        reserve, charge, ship, unknown = [
            ProcessAuditEntry(step_name=name, command_id=uuid4(), command_type="Do")
            for name in ("reserve", "charge", "ship", "unknown")
        ]
        # The sender of the second has a clock that is behind.
        charge.sent_at = reserve.sent_at.replace(year=2020)
        for entry, outcome in ((reserve, "SUCCESS"), (charge, "SUCCESS"), (ship, "FAILED")):
            assert await repository.log_step(*key, entry, conn)
            assert not await repository.log_step(*key, entry, conn)
            reply = StepReply(entry.command_id, ReplyOutcome(outcome), {"of": entry.step_name})
            assert await repository.update_step_reply(*key, entry.command_id, reply, conn)
            assert not await repository.update_step_reply(*key, entry.command_id, reply, conn)
        await repository.log_step(*key, unknown, conn)

        async def to_undo(*, include_unknown: bool = False) -> list[str]:
            entries = await repository.get_steps_to_compensate(*key, conn, include_unknown=include_unknown)
            return [entry.step_name for entry in entries]

        assert await repository.get_completed_steps(*key, conn) == ["reserve", "charge"]
        assert await to_undo() == ["charge", "reserve"]
        assert await to_undo(include_unknown=True) == ["unknown", "charge", "reserve"]
        [first, _] = await repository.get_steps_to_compensate(*key, conn)
        assert first.reply_data == {"of": "charge"}

        undo = ProcessAuditEntry(
            step_name="refund", command_id=uuid4(), command_type="Undo", compensates=charge.command_id
        )
        await repository.log_step(*key, undo, conn)
        assert await to_undo() == ["charge", "reserve"]  # it is not answered yet
        await repository.update_step_reply(
            *key, undo.command_id, StepReply(undo.command_id, ReplyOutcome.SUCCESS), conn
        )
        assert await to_undo() == ["reserve"]
        assert (await repository.get_audit_trail(*key, conn))[-1].compensates == charge.command_id

    async def test_a_reply_to_another_command_is_refused(self, repository: Repository) -> None:
        with pytest.raises(InvalidInputError) as caught:
            await repository.update_step_reply(DOMAIN, uuid4(), uuid4(), StepReply(uuid4(), ReplyOutcome.SUCCESS))
        assert caught.value.field == "command_id"
