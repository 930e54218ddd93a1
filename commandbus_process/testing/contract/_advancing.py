"""One step of a process manager: taken whole and once, or refused."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from commandbus_process.errors import (
    ConcurrentUpdateError,
    InvalidInputError,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from commandbus_process.models import JsonObject, ProcessAuditEntry, ProcessMetadata, ReplyOutcome, StepReply
from commandbus_process.testing.contract._given import (
    LATER,
    NOON,
    Given,
    Waiting,
    answered,
    new_command,
    new_process,
    reply_to,
)

SHAPES: dict[str, tuple[bool, list[str]]] = {
    "a reply and a command": (True, ["charge"]),
    "a reply and three commands": (True, ["ship", "charge", "notify"]),
    "a reply": (True, []),
    "a command": (False, ["charge"]),
    "two commands": (False, ["ship", "charge"]),
    "neither": (False, []),
}


class AdvancingContract(Given):
    """One step of a process manager: taken whole and once, or refused."""

    async def test_a_step_without_reply_and_commands_is_no_redelivery(self, waiting: Waiting) -> None:
        """It has nothing by which it could be recognised: two that count up at once are two steps."""
        await waiting.begin()
        first, second = [await waiting.repository.get_by_id(*waiting.key, waiting.conn) for _ in range(2)]
        assert first is not None
        assert second is not None
        assert await waiting.repository.advance(first, waiting.conn)
        with pytest.raises(ConcurrentUpdateError):
            await waiting.repository.advance(second, waiting.conn)

    async def test_one_step_after_another_from_one_object(self, waiting: Waiting) -> None:
        await waiting.begin()
        process, asked = waiting.next(), waiting.asked
        expected: list[ProcessAuditEntry] = [waiting.done]
        for number in range(3):
            reply, command = reply_to(asked), new_command(f"step {number}")
            process.state = {"number": number}
            await waiting.repository.advance(process, waiting.conn, reply=reply, sent=command)
            expected.append(answered(asked, reply))
            asked = command
            assert await waiting.repository.get_by_id(*waiting.key, waiting.conn) == process
        assert process.version == 5
        assert await waiting.trail() == [*expected, asked]

    @pytest.mark.parametrize(("stored", "given"), [({"paid": 1}, {"paid": True}), ({"paid": 0}, {"paid": False})])
    async def test_data_that_is_equal_only_to_python_is_other_data(
        self, waiting: Waiting, stored: JsonObject, given: JsonObject
    ) -> None:
        await waiting.begin()
        repository, key, conn = waiting.repository, waiting.key, waiting.conn
        entry = new_command(command_data=stored)
        await repository.log_step(*key, entry, conn)
        await repository.update_step_reply(*key, entry.command_id, reply_to(entry, reply_data=stored), conn)
        with pytest.raises(ReplyConflictError, match="other data") as reply:
            await repository.update_step_reply(*key, entry.command_id, reply_to(entry, reply_data=given), conn)
        with pytest.raises(StepAlreadyLoggedError, match=r"\(they differ in command_data\)") as logged:
            await repository.log_step(*key, entry.model_copy(update={"command_data": given}), conn)
        assert not reply.value.is_same
        assert not logged.value.is_same
        assert logged.value.different == ("command_data",)

    async def test_a_step_of_another_process_is_not_answered_and_not_in_the_way(self, waiting: Waiting) -> None:
        """The same command ids, in a process of the same domain and in one of the same id."""
        await waiting.begin()
        neighbours = [new_process(), waiting.process.model_copy(deep=True, update={"domain": "refunds"})]
        commands = [new_command(), new_command("ship")]
        for neighbour in neighbours:
            await waiting.repository.save(neighbour, waiting.conn)
            for entry in (waiting.asked, *commands):
                await waiting.repository.log_step(neighbour.domain, neighbour.process_id, entry, waiting.conn)
        reply = reply_to(waiting.asked)
        await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=commands)
        assert await waiting.trail() == [waiting.done, answered(waiting.asked, reply), *commands]
        for neighbour in neighbours:
            key = neighbour.domain, neighbour.process_id
            assert await waiting.repository.get_by_id(*key, waiting.conn) == neighbour
            assert await waiting.repository.get_audit_trail(*key, waiting.conn) == [waiting.asked, *commands]

    async def test_many_commands_are_in_the_trail_in_the_order_in_which_they_were_given(self, waiting: Waiting) -> None:
        await waiting.begin()
        commands = [new_command(f"step {number}") for number in range(200)]
        await waiting.repository.advance(waiting.next(), waiting.conn, sent=(entry for entry in commands))
        assert await waiting.trail() == [waiting.done, waiting.asked, *commands]

    async def test_one_entry_is_one_command(self, waiting: Waiting) -> None:
        await waiting.begin()
        commands = new_command()
        await waiting.repository.advance(waiting.next(), waiting.conn, sent=commands)
        assert await waiting.trail() == [waiting.done, waiting.asked, commands]

    async def test_a_reply_without_a_time_was_received_at_this_moment(self, waiting: Waiting) -> None:
        await waiting.begin()
        reply, before = reply_to(waiting.asked, received_at=None), datetime.now(UTC)
        commands = new_command(reply_outcome=ReplyOutcome.CANCELED, sent_at=before)
        await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=commands)
        for entry in (await waiting.trail())[1:]:
            assert entry.received_at is not None
            assert before <= entry.received_at <= datetime.now(UTC)

    async def test_a_reply_without_a_time_was_received_before_the_commands_that_it_causes(
        self, waiting: Waiting
    ) -> None:
        """They were made before the library was called."""
        await waiting.begin()
        reply = StepReply(waiting.asked.command_id, ReplyOutcome.SUCCESS)
        commands = [new_command(sent_at=datetime.now(UTC)), new_command("ship", sent_at=datetime.now(UTC))]
        await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=commands)
        asked = next(entry for entry in await waiting.trail() if entry.command_id == waiting.asked.command_id)
        assert asked.received_at is not None
        assert all(asked.received_at <= entry.sent_at for entry in commands)

    @pytest.mark.parametrize(("with_reply", "names"), SHAPES.values(), ids=SHAPES)
    async def test_a_step_is_stored_whole(self, waiting: Waiting, *, with_reply: bool, names: list[str]) -> None:
        await waiting.begin()
        reply = reply_to(waiting.asked) if with_reply else None
        commands = [new_command(name) for name in names]
        process = waiting.next(created_at=NOON)  # which is never written
        assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=commands)
        assert process.version == 3
        assert process.updated_at >= waiting.process.updated_at
        expected = waiting.next(version=3, updated_at=process.updated_at)
        asked = waiting.asked if reply is None else answered(waiting.asked, reply)
        assert await waiting.everything() == (expected, [waiting.done, asked, *commands])

    @pytest.mark.parametrize(("with_reply", "names"), [(True, ["ship", "charge"]), (True, []), (False, ["charge"])])
    async def test_a_step_that_was_taken_already_changes_nothing(
        self, waiting: Waiting, *, with_reply: bool, names: list[str]
    ) -> None:
        await waiting.begin()
        reply = reply_to(waiting.asked) if with_reply else None
        commands = [new_command(name) for name in names]
        process, again, other = waiting.next(), waiting.next(), waiting.next()
        again.completed_at = NOON + LATER  # who ends a process "now" ends it later in the redelivery
        other.state["total"] = 14
        assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=commands)
        for entry in commands:  # their replies come in the meantime, which do not change the process
            await waiting.repository.update_step_reply(*waiting.key, entry.command_id, reply_to(entry), waiting.conn)
        before = await waiting.everything()
        late = None if reply is None else reply.model_copy(update={"received_at": NOON + LATER})
        late_commands = [entry.model_copy(update={"sent_at": NOON + LATER}) for entry in commands]
        for redelivered in (again, other):
            assert not await waiting.repository.advance(redelivered, waiting.conn, reply=late, sent=late_commands)
        assert await waiting.everything() == before
        assert (again.version, again.updated_at) == (process.version, process.updated_at)
        with pytest.raises(ConcurrentUpdateError):
            await waiting.repository.update(other, waiting.conn)  # it does not have what its row has
        await waiting.repository.update(again, waiting.conn)
        assert again.version == 4

    async def test_a_step_that_was_taken_already_in_part_only(self, waiting: Waiting) -> None:
        await waiting.begin()
        reply, commands = reply_to(waiting.asked), [new_command(), new_command("ship")]
        await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=commands)
        before = await waiting.everything()
        first, second = commands
        for other_reply, other_commands, error in (
            (reply_to(waiting.asked, reply_outcome=ReplyOutcome.FAILED), commands, ReplyConflictError),
            (reply_to(waiting.asked, reply_data=None), commands, ReplyConflictError),
            (reply_to(new_command("never logged")), commands, StepNotFoundError),
            (reply, [first, second.model_copy(update={"step_name": "other"})], ReplyConflictError),
            (reply, [first, second, new_command("one more")], ReplyConflictError),
            (reply, [new_command("another")], ReplyConflictError),
        ):
            with pytest.raises(ConcurrentUpdateError) as caught:
                await waiting.repository.advance(waiting.next(), waiting.conn, reply=other_reply, sent=other_commands)
            assert (caught.value.expected_version, caught.value.actual_version) == (2, 3)
            anew = await waiting.repository.get_by_id(*waiting.key, waiting.conn)
            assert anew is not None
            with pytest.raises(error) as refused:
                await waiting.repository.advance(anew, waiting.conn, reply=other_reply, sent=other_commands)
            if other_reply is reply:
                assert getattr(refused.value, "is_same", None) is True
        assert await waiting.everything() == before

    async def test_a_step_that_is_refused_leaves_everything_as_it_was(self, waiting: Waiting) -> None:
        await waiting.begin()
        unknown, done, there, process_id = new_command(), waiting.done, waiting.asked, uuid4()
        other = there.model_copy(update={"step_name": "other"})
        stale = {"expected_version": 1, "actual_version": 2}
        of_reply: dict[str, object] = {"command_id": done.command_id, "recorded": done}
        of_command: dict[str, object] = {"command_id": there.command_id, "recorded": there, "given": other}
        before = await waiting.everything()
        for shape in ([], [new_command()], [new_command(), new_command("ship")]):
            refused: list[
                tuple[
                    type[ProcessRepositoryError],
                    dict[str, object],
                    ProcessMetadata,
                    ProcessAuditEntry | None,
                    list[ProcessAuditEntry],
                ]
            ] = [
                (ConcurrentUpdateError, {**stale}, waiting.next(version=1), reply_to(there), shape),
                (ProcessNotFoundError, {"process_id": process_id}, waiting.next(process_id=process_id), None, shape),
                (ProcessNotFoundError, {"domain": "refunds"}, waiting.next(domain="refunds"), None, shape),
                (StepNotFoundError, {"command_id": unknown.command_id}, waiting.next(), reply_to(unknown), shape),
                (ReplyConflictError, of_reply, waiting.next(), reply_to(done, reply_data=None), shape),
                (StepAlreadyLoggedError, of_command, waiting.next(), None, [*shape, other]),
            ]
            for error, facts, process, reply, commands in refused:
                given = process.model_copy(deep=True)
                with pytest.raises(error) as caught:
                    await waiting.repository.advance(process, waiting.conn, reply=reply, sent=commands)
                assert type(caught.value) is error
                assert {name: getattr(caught.value, name) for name in facts} == facts
                assert process == given
                assert await waiting.everything() == before

    async def test_a_process_that_was_never_read_cannot_take_a_step(self, waiting: Waiting) -> None:
        await waiting.begin()
        with pytest.raises(InvalidInputError) as caught:
            await waiting.repository.advance(waiting.next(version=None), waiting.conn, reply=reply_to(waiting.asked))
        assert caught.value.field == "process.version"
