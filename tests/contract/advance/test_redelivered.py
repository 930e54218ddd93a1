"""A step that was taken already, or in part, and one that is taken after another."""

import pytest

from commandbus_process import (
    ConcurrentUpdateError,
    ProcessAuditEntry,
    ReplyConflictError,
    ReplyOutcome,
    StepNotFoundError,
)
from tests.support.advancing import LATER, NOON, Waiting, new_command, reply_to


def at_another_time(entry: ProcessAuditEntry) -> ProcessAuditEntry:
    return entry.model_copy(
        update={"sent_at": entry.sent_at + LATER, "received_at": entry.received_at and NOON + LATER}
    )


@pytest.mark.parametrize(("with_reply", "names"), [(True, ["ship", "charge"]), (True, []), (False, ["charge"])])
async def test_a_step_that_was_taken_already_changes_nothing(
    waiting: Waiting, *, with_reply: bool, names: list[str]
) -> None:
    reply = reply_to(waiting.asked, reply_data={"small": 1e-7}) if with_reply else None
    sent = [new_command(name, command_data={"small": 1e-7}) for name in names]
    process, again = waiting.next(state={"small": 1e-7}), waiting.next(state={"small": 1e-7})
    again.completed_at = NOON + LATER  # who ends a process "now" ends it later in the redelivery
    assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    for entry in sent:  # their replies come in the meantime, which do not change the process
        await waiting.repository.update_step_reply(*waiting.key, entry.command_id, reply_to(entry), waiting.conn)
    before = await waiting.everything()
    assert not await waiting.repository.advance(
        again,
        waiting.conn,
        reply=None if reply is None else at_another_time(reply),
        sent=[at_another_time(entry) for entry in sent],
    )
    assert await waiting.everything() == before
    assert (again.version, again.updated_at) == (process.version, process.updated_at)
    await waiting.repository.update(again, waiting.conn)  # it has what its row has
    assert again.version == 4


@pytest.mark.parametrize("is_read_anew", [False, True], ids=["the same object", "read anew"])
async def test_a_redelivery_whose_process_was_decided_again(waiting: Waiting, *, is_read_anew: bool) -> None:
    """The ordinary one: the handler reads the process, decides, and makes the same commands."""
    reply, sent = reply_to(waiting.asked), [new_command(), new_command("ship")]
    process = waiting.next(state={"count": 1})
    assert await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    before = await waiting.everything()
    again = await waiting.repository.get_by_id(*waiting.key, waiting.conn) if is_read_anew else process
    assert again is not None
    again.state["count"] = 2  # it counts what was counted before
    assert not await waiting.repository.advance(again, waiting.conn, reply=reply, sent=sent)
    with pytest.raises(ConcurrentUpdateError):
        await waiting.repository.update(again, waiting.conn)
    assert await waiting.everything() == before


async def test_a_step_that_was_taken_already_in_part_only(waiting: Waiting) -> None:
    reply, sent = reply_to(waiting.asked), [new_command(), new_command("ship")]
    await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=sent)
    before = await waiting.everything()
    first, second = sent
    others: list[tuple[ProcessAuditEntry, list[ProcessAuditEntry], type[Exception]]] = [
        (reply_to(waiting.asked, reply_outcome=ReplyOutcome.FAILED), sent, ReplyConflictError),
        (reply_to(waiting.asked, reply_data=None), sent, ReplyConflictError),
        (reply_to(new_command("never logged")), sent, StepNotFoundError),
        (reply, [first, second.model_copy(update={"step_name": "other"})], ReplyConflictError),
        (reply, [first.model_copy(update={"command_type": "Other"}), second], ReplyConflictError),
        (reply, [first, second.model_copy(update={"command_data": {"amount": 1}})], ReplyConflictError),
        (reply, [first, second, new_command("one more")], ReplyConflictError),
        (reply, [new_command("another")], ReplyConflictError),
    ]
    for other_reply, other_sent, error in others:
        stale = waiting.next()
        with pytest.raises(ConcurrentUpdateError) as caught:
            await waiting.repository.advance(stale, waiting.conn, reply=other_reply, sent=other_sent)
        assert (caught.value.expected_version, caught.value.actual_version) == (2, 3)
        anew = await waiting.repository.get_by_id(*waiting.key, waiting.conn)
        assert anew is not None
        with pytest.raises(error) as refused:
            await waiting.repository.advance(anew, waiting.conn, reply=other_reply, sent=other_sent)
        if other_reply is reply:
            assert getattr(refused.value, "is_same", None) is True
            assert str(next(each for each in other_sent if each not in sent).command_id) in str(refused.value)
    assert await waiting.everything() == before


async def test_a_step_that_was_taken_before_the_last_one(waiting: Waiting) -> None:
    process, again = waiting.next(), waiting.next()
    reply, sent = reply_to(waiting.asked), [new_command(), new_command("ship")]
    await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
    process.state = {"total": 15}
    await waiting.repository.update(process, waiting.conn)
    before = await waiting.everything()
    assert not await waiting.repository.advance(again, waiting.conn, reply=reply, sent=sent)
    with pytest.raises(ConcurrentUpdateError) as caught:
        await waiting.repository.update(again, waiting.conn)
    assert (caught.value.expected_version, caught.value.actual_version) == (2, 4)
    assert await waiting.everything() == before


async def test_an_update_of_the_same_content_is_not_the_step(waiting: Waiting) -> None:
    await waiting.repository.update(waiting.next(), waiting.conn)
    before = await waiting.everything()
    for reply, sent in (
        (reply_to(waiting.asked), []),
        (None, [new_command()]),
        (reply_to(waiting.asked), [new_command()]),
    ):
        with pytest.raises(ConcurrentUpdateError) as caught:
            await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply, sent=sent)
        assert (caught.value.expected_version, caught.value.actual_version) == (2, 3)
    assert await waiting.everything() == before


async def test_what_is_rolled_back_was_not_taken(committed: Waiting) -> None:
    before = await committed.everything()
    async with committed.engine.connect() as conn:
        for sent in ([], [new_command()], [new_command(), new_command("ship")]):
            await committed.repository.advance(committed.next(), conn, reply=reply_to(committed.asked), sent=sent)
            await conn.rollback()
    assert await committed.everything() == before
