"""Many processes or steps: stored as the single methods store them, all or none."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from commandbus_process.errors import (
    InvalidInputError,
    ProcessAlreadyExistsError,
    ProcessError,
    ProcessNotFoundError,
    StepAlreadyLoggedError,
)
from commandbus_process.models import (
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)
from commandbus_process.testing.contract._given import (
    DOMAIN,
    NOON,
    ODD_TEXT,
    Connection,
    Given,
    Repository,
    Step,
    for_process,
    given_as,
    new_entry,
    new_process,
)

DIFFERENCES: list[dict[str, object]] = [
    {"step_name": "other"},
    {"command_type": "Other"},
    {"command_data": {"quantity": 4}},
    {"command_data": None},
    {"reply_outcome": ReplyOutcome.FAILED},
    {"reply_data": {"reserved": 4}},
    {"reply_data": None},
]


class BulkContract(Given):
    """Many processes or steps: stored as the single methods store them, all or none."""

    @pytest.fixture(params=["list", "generator", "async generator"])
    def form(self, request: pytest.FixtureRequest) -> str:
        """What the items are given as."""
        return str(request.param)

    async def test_many_processes_are_saved(self, repository: Repository, conn: Connection, form: str) -> None:
        processes = [new_process() for _ in range(3)]
        before = [process.model_copy(deep=True) for process in processes]
        assert await repository.save_many(given_as(form, processes), conn) == 3
        for process, each in zip(processes, before, strict=True):
            assert process == each.model_copy(update={"version": 1})
            assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process

    async def test_what_was_saved_in_bulk_can_be_updated(self, repository: Repository, conn: Connection) -> None:
        changed, unchanged = processes = [new_process() for _ in range(2)]
        await repository.save_many(processes, conn)
        changed.state = {"total": 13}
        for process in processes:
            process.status = ProcessStatus.COMPLETED
            await repository.update(process, conn)
            assert process.version == 2
            assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process
        assert unchanged.state == new_process().state

    async def test_many_steps_are_logged(
        self, repository: Repository, conn: Connection, process: ProcessMetadata, form: str
    ) -> None:
        replied = {
            "reply_outcome": ReplyOutcome.FAILED,
            "reply_data": {"code": 7},
            "received_at": NOON + timedelta(days=1),
        }
        entries = [new_entry("reserve"), new_entry("charge", command_data=None, **replied), new_entry("pack")]
        await repository.save(process, conn)
        assert await repository.log_many(given_as(form, for_process(DOMAIN, process.process_id, entries)), conn) == 3
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == entries

    async def test_steps_of_many_processes_are_logged(
        self, repository: Repository, conn: Connection, form: str
    ) -> None:
        one, two = [new_process() for _ in range(2)]
        elsewhere = one.model_copy(update={"domain": "refunds"})
        await repository.save_many([one, two, elsewhere], conn)
        entry, later = new_entry(), new_entry("charge")  # a command id is unique within a process only
        steps = [
            (two.domain, two.process_id, entry),
            (one.domain, one.process_id, later),
            (elsewhere.domain, elsewhere.process_id, entry),
            (one.domain, one.process_id, entry),
        ]
        assert await repository.log_many(given_as(form, steps), conn) == 4
        assert await repository.get_audit_trail(one.domain, one.process_id, conn) == [later, entry]
        assert await repository.get_audit_trail(two.domain, two.process_id, conn) == [entry]
        assert await repository.get_audit_trail("refunds", one.process_id, conn) == [entry]

    async def test_only_new_entries_are_counted(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        known, new = new_entry("known"), [new_entry() for _ in range(3)]
        await repository.log_step(DOMAIN, process.process_id, known, conn)
        later = known.model_copy(update={"sent_at": NOON + timedelta(days=1)})  # delivered again, handled later
        assert await repository.log_many(for_process(DOMAIN, process.process_id, [new[0], later, *new[1:]]), conn) == 3
        steps = [(DOMAIN, process.process_id, entry) for entry in (known, *new)]
        assert await repository.log_many(steps, conn) == 0
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [known, *new]

    async def test_the_domain_of_many_may_be_any_text(self, repository: Repository, conn: Connection) -> None:
        process, entry = (
            new_process().model_copy(update={"domain": ODD_TEXT}),
            new_entry(ODD_TEXT, command_type=ODD_TEXT),
        )
        await repository.save_many([process], conn)
        await repository.log_many(for_process(ODD_TEXT, process.process_id, [entry]), conn)
        assert await repository.get_by_id(ODD_TEXT, process.process_id, conn) == process
        assert await repository.get_audit_trail(ODD_TEXT, process.process_id, conn) == [entry]

    async def test_replies_without_a_time_were_received_now(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        before = datetime.now(UTC)
        await repository.log_many(
            for_process(DOMAIN, process.process_id, [new_entry(reply_outcome=ReplyOutcome.SUCCESS)]), conn
        )
        [found] = await repository.get_audit_trail(DOMAIN, process.process_id, conn)
        assert found.received_at is not None
        assert before <= found.received_at <= datetime.now(UTC)

    async def test_one_id_in_two_domains_is_two_processes(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        assert await repository.save_many([process, process.model_copy(update={"domain": "refunds"})], conn) == 2

    @pytest.mark.parametrize("between", [0, 1100])
    async def test_one_entry_twice_is_harmless(
        self, repository: Repository, conn: Connection, process: ProcessMetadata, between: int
    ) -> None:
        await repository.save(process, conn)
        entry, others = new_entry(), [new_entry() for _ in range(between)]
        again = entry.model_copy(update={"sent_at": NOON - timedelta(days=1)})
        logged = await repository.log_many(
            for_process(DOMAIN, process.process_id, [entry, *others, again, entry]), conn
        )
        assert logged == 1 + between
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry, *others]

    @pytest.mark.parametrize("difference", DIFFERENCES, ids=str)
    async def test_each_difference_to_what_is_logged_is_seen(
        self, repository: Repository, conn: Connection, process: ProcessMetadata, difference: dict[str, object]
    ) -> None:
        await repository.save(process, conn)
        entry = new_entry(reply_outcome=ReplyOutcome.SUCCESS, reply_data={"reserved": 3}, received_at=NOON)
        await repository.log_step(DOMAIN, process.process_id, entry, conn)
        other = entry.model_copy(update=difference)
        with pytest.raises(StepAlreadyLoggedError, match=next(iter(difference))) as caught:
            await repository.log_many(for_process(DOMAIN, process.process_id, [new_entry(), other]), conn)
        assert (caught.value.recorded, caught.value.given) == (entry, other)
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [entry]

    async def test_an_entry_that_was_replied_to_since_is_the_same(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        entry = new_entry()
        reply = entry.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS, "received_at": NOON})
        await repository.log_many(for_process(DOMAIN, process.process_id, [entry]), conn)
        await repository.update_step_reply(DOMAIN, process.process_id, entry.command_id, reply, conn)
        for again in (entry, reply):
            assert await repository.log_many(for_process(DOMAIN, process.process_id, [again]), conn) == 0
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == [reply]

    async def test_nothing_is_given(self, repository: Repository, conn: Connection, form: str) -> None:
        assert await repository.save_many(given_as(form, list[ProcessMetadata]()), conn) == 0
        assert await repository.log_many(given_as(form, list[Step]()), conn) == 0

    @pytest.mark.parametrize("between", [0, 1100])
    async def test_after_a_taken_id_nothing_is_saved(
        self, repository: Repository, conn: Connection, process: ProcessMetadata, between: int
    ) -> None:
        await repository.save(process, conn)
        others = [new_process() for _ in range(between + 1)]
        for again in (process.process_id, others[0].process_id):
            with pytest.raises(ProcessAlreadyExistsError) as caught:
                await repository.save_many([*others, new_process(again)], conn)
            assert (caught.value.domain, caught.value.process_id) == (DOMAIN, again)
            assert caught.value.other_errors == ()
        assert await repository.get_by_ids(DOMAIN, [each.process_id for each in others], conn) == {}
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) == process

    async def test_the_error_is_about_the_first_taken_id_and_lists_the_others(
        self, repository: Repository, conn: Connection
    ) -> None:
        taken = [new_process() for _ in range(5)]
        await repository.save_many(taken, conn)
        offered = [new_process(), *(new_process(process.process_id) for process in taken[::-1])]
        with pytest.raises(ProcessAlreadyExistsError) as caught:
            await repository.save_many(offered, conn)
        first, *others = (process.process_id for process in offered[1:])
        assert_lists(caught.value, first, [(ProcessAlreadyExistsError, other) for other in others])

    async def test_another_entry_with_the_command_id_of_one_before_it(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        entry = new_entry()
        other = entry.model_copy(update={"command_data": {"quantity": 4}})
        with pytest.raises(StepAlreadyLoggedError) as caught:
            await repository.log_many(for_process(DOMAIN, process.process_id, [entry, new_entry(), other]), conn)
        error = caught.value
        assert (error.process_id, error.command_id, error.other_errors) == (process.process_id, entry.command_id, ())
        assert (error.recorded, error.given) == (entry, other)
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == []

    async def test_the_error_lists_all_conflicts_of_a_batch(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        await repository.save(process, conn)
        key, unknown = (DOMAIN, process.process_id), (DOMAIN, uuid4())
        entry, redelivered = new_entry(), new_entry()
        await repository.log_many(for_process(*key, [entry, redelivered]), conn)
        other = entry.model_copy(update={"step_name": "other"})
        steps = [
            (*key, new_entry()),
            (*key, other),
            (*key, redelivered),
            (*unknown, new_entry()),
            (*key, new_entry()),
            (*unknown, new_entry()),
        ]
        with pytest.raises(StepAlreadyLoggedError) as already:
            await repository.log_many(steps, conn)
        assert_lists(already.value, key[1], [(ProcessNotFoundError, unknown[1])] * 2)
        with pytest.raises(ProcessNotFoundError) as not_found:
            await repository.log_many(steps[3::-1], conn)
        assert_lists(not_found.value, unknown[1], [(StepAlreadyLoggedError, key[1])])
        assert not_found.value.retryable
        assert await repository.get_audit_trail(*key, conn) == [entry, redelivered]

    async def test_what_cannot_be_stored_is_named_by_its_position(
        self, repository: Repository, conn: Connection, process: ProcessMetadata
    ) -> None:
        bad = new_process().model_copy(update={"state": {"n": float("nan")}})
        with pytest.raises(InvalidInputError) as caught:
            await repository.save_many([process, bad], conn)
        assert caught.value.field == "processes[1].state"
        assert await repository.get_by_id(DOMAIN, process.process_id, conn) is None
        await repository.save(process, conn)
        entries = [new_entry(), new_entry(command_type="")]
        with pytest.raises(InvalidInputError) as caught:
            await repository.log_many(for_process(DOMAIN, process.process_id, entries), conn)
        assert caught.value.field == "steps[1].command_type"
        assert await repository.get_audit_trail(DOMAIN, process.process_id, conn) == []


def assert_lists(error: ProcessError, process_id: UUID, others: list[tuple[type[ProcessError], UUID]]) -> None:
    assert error.process_id == process_id
    assert [(type(other), other.process_id) for other in error.other_errors] == others
    assert f"and {len(others)} more" in str(error)
