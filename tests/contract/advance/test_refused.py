"""A step that cannot be taken is an error that says why, and nothing of it is written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import (
    ConcurrentUpdateError,
    InvalidInputError,
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ReplyConflictError,
    ReplyOutcome,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from tests.support.advancing import LATER, NOON, SHAPES, Waiting, answered, new_command, reply_to
from tests.support.items import DOMAIN, new_process


@dataclass
class Refused:
    """A step that cannot be taken, and the error that says why."""

    error: type[ProcessRepositoryError]
    facts: Mapping[str, object]
    process: ProcessMetadata
    reply: ProcessAuditEntry | None
    sent: Sequence[ProcessAuditEntry]


def refused_for_the_process(waiting: Waiting) -> list[Refused]:
    unknown, stale, ahead = uuid4(), {"expected_version": 1, "actual_version": 2}, {"version": 7}
    refused: list[Refused] = []
    for with_reply, names in SHAPES.values():
        step = reply_to(waiting.asked) if with_reply else None, [new_command(name) for name in names]
        key = {"domain": DOMAIN, "process_id": waiting.process.process_id}
        refused += [
            Refused(ConcurrentUpdateError, key | stale, waiting.next(version=1), *step),
            Refused(ConcurrentUpdateError, {"expected_version": 7, "actual_version": 2}, waiting.next(**ahead), *step),
            Refused(ProcessNotFoundError, {"process_id": unknown}, waiting.next(process_id=unknown), *step),
            Refused(ProcessNotFoundError, {"domain": "refunds"}, waiting.next(domain="refunds"), *step),
        ]
    return refused


def refused_for_the_reply(waiting: Waiting) -> list[Refused]:
    unknown = new_command("never logged")
    same = reply_to(waiting.done, received_at=NOON + LATER)
    others = [
        reply_to(waiting.done, reply_outcome=ReplyOutcome.FAILED),
        reply_to(waiting.done, reply_data={"reserved": 2}),
        reply_to(waiting.done, reply_data=None),
    ]
    refused: list[Refused] = []
    for sent in ([], [new_command()], [new_command(), new_command("ship")]):
        facts: Mapping[str, object] = {"command_id": unknown.command_id}
        refused.append(Refused(StepNotFoundError, facts, waiting.next(), reply_to(unknown), sent))
        for reply in (same, *others) if sent else others:  # the same reply alone is a redelivery
            facts = {"command_id": waiting.done.command_id, "recorded": waiting.done, "given": reply}
            refused.append(Refused(ReplyConflictError, facts, waiting.next(), reply, sent))
    return refused


def refused_for_a_command(waiting: Waiting) -> list[Refused]:
    there, done = waiting.asked, waiting.done
    refused: list[Refused] = []
    for given in (
        there.model_copy(),
        there.model_copy(update={"step_name": "other"}),
        there.model_copy(update={"command_data": None}),
        there.model_copy(update={"reply_outcome": ReplyOutcome.SUCCESS}),
    ):
        facts: Mapping[str, object] = {"command_id": there.command_id, "recorded": there, "given": given}
        refused += [
            Refused(StepAlreadyLoggedError, facts, waiting.next(), None, sent)
            for sent in at_every_place(given)
            if given != there or len(sent) > 1  # the same command alone is a redelivery
        ]
    facts = {"command_id": done.command_id, "recorded": done, "given": done}
    refused += [
        Refused(StepAlreadyLoggedError, facts, waiting.next(), reply_to(there), sent) for sent in at_every_place(done)
    ]
    return refused


def at_every_place(entry: ProcessAuditEntry) -> list[list[ProcessAuditEntry]]:
    return [[entry], [entry, new_command()], [new_command(), entry], [new_command(), entry, new_command()]]


@pytest.mark.parametrize(
    "refused_for",
    [refused_for_the_process, refused_for_the_reply, refused_for_a_command],
    ids=lambda each: each.__name__,
)
async def test_a_step_that_is_refused_leaves_everything_as_it_was(
    waiting: Waiting, refused_for: Callable[[Waiting], list[Refused]], subtests: pytest.Subtests
) -> None:
    failed_statements: list[object] = []
    event.listen(waiting.engine.sync_engine, "handle_error", failed_statements.append)
    for refused in refused_for(waiting):
        with subtests.test(f"{refused.error.__name__} {refused.facts}, sent: {len(refused.sent)}"):
            before, given = await waiting.everything(), refused.process.model_copy(deep=True)
            with pytest.raises(refused.error) as caught:
                await waiting.repository.advance(refused.process, waiting.conn, reply=refused.reply, sent=refused.sent)
            assert type(caught.value) is refused.error
            assert {name: getattr(caught.value, name) for name in refused.facts} == refused.facts
            assert refused.process == given
            assert await waiting.everything() == before
            if waiting.conn is not None:
                assert waiting.conn.in_transaction()
                await waiting.repository.save(new_process(), waiting.conn)
    assert failed_statements == []


def test_a_conflict_names_the_fields_that_are_missing() -> None:
    entry = new_command()
    recorded = answered(entry, reply_to(entry))
    for error in (
        ReplyConflictError(DOMAIN, uuid4(), recorded, reply_to(entry), "command 7", is_same=True),
        StepAlreadyLoggedError(DOMAIN, uuid4(), entry, entry.model_copy(), [], "command 7"),
    ):
        assert error.is_same
        assert "command 7 is not" in str(error)


async def test_a_step_that_only_another_process_has(waiting: Waiting) -> None:
    """A step of another process proves nothing about this one: not that it was sent, and not that it waits."""
    theirs = new_command()
    for neighbour in (new_process(), waiting.process.model_copy(deep=True, update={"domain": "refunds"})):
        await waiting.repository.save(neighbour, waiting.conn)
        for entry in (theirs, new_command(command_id=waiting.done.command_id)):
            await waiting.repository.log_step(neighbour.domain, neighbour.process_id, entry, waiting.conn)
    before = await waiting.everything()
    for sent in ([], [new_command()], [new_command(), new_command()]):
        for entry, error in ((theirs, StepNotFoundError), (waiting.done, ReplyConflictError)):
            if not sent and entry is waiting.done:
                continue  # which is a redelivery
            with pytest.raises(error):
                await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply_to(entry), sent=sent)
            assert await waiting.everything() == before


async def test_a_process_of_another_type_than_it_has_in_its_row(waiting: Waiting, subtests: pytest.Subtests) -> None:
    by_type: dict[str, Any] = {"order": dict, "refund": dict}
    repository = PostgresProcessRepository[JsonObject](waiting.engine, state_type=by_type)
    before = await waiting.everything()
    for shape, (with_reply, names) in SHAPES.items():
        with subtests.test(shape):
            reply, sent = reply_to(waiting.asked) if with_reply else None, [new_command(name) for name in names]
            process = waiting.next(process_type="refund")
            with pytest.raises(InvalidInputError) as caught:
                await repository.advance(process, waiting.conn, reply=reply, sent=sent)
            assert caught.value.field == "process_type"
            assert process == waiting.next(process_type="refund")
            assert await waiting.everything() == before
    await repository.advance(waiting.next(), waiting.conn, reply=reply_to(waiting.asked), sent=new_command())


def invalid_steps() -> Iterable[tuple[str, ProcessMetadata, ProcessAuditEntry | None, list[Any]]]:
    """The field at fault, and the step."""
    process, reply, nan = new_process(), reply_to(new_command()), {"n": float("nan")}
    process.version = 1
    twice = new_command()
    same_id = new_command(command_id=twice.command_id)
    yield "process.version", process.model_copy(update={"version": None}), reply, [new_command()]
    yield "process.version", process.model_copy(update={"version": None}), None, []
    yield "process", process.model_copy(update={"version": 0, "current_step": "x" * 256}), reply, []
    yield "state", process.model_copy(update={"state": nan}), reply, [new_command()]
    yield "reply.reply_outcome", process, new_command(), []
    yield "reply.reply_data", process, reply.model_copy(update={"reply_data": nan}), [new_command()]
    yield "reply", process, reply.model_copy(update={"received_at": datetime(2026, 3, 1)}), []  # noqa: DTZ001
    yield "reply.command_id", process, reply.model_copy(update={"command_id": str(uuid4())}), []
    yield "sent[0].command_type", process, reply, [new_command(command_type="")]
    yield "sent[1].command_type", process, reply, [new_command(), new_command(command_type="")]
    yield "sent[1].command_data", process, None, [new_command(), new_command(command_data=nan), new_command()]
    yield "sent[1].reply_outcome", process, None, [new_command(), new_command(received_at=NOON)]
    yield "sent[1].reply_data", process, None, [new_command(), new_command(reply_outcome="SUCCESS", reply_data=nan)]
    yield "sent[2]", process, None, [new_command(), new_command(), new_command(step_name="x" * 256)]
    yield "sent[1]", process, None, [new_command(), new_command(step_name="a\0b")]
    yield "sent[1].command_id", process, reply, [twice, twice]
    yield "sent[2].command_id", process, None, [twice, new_command(), same_id]


async def test_what_cannot_be_stored_is_refused_before_any_sql(subtests: pytest.Subtests) -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")  # nothing answers there
    repository = PostgresProcessRepository(engine)
    for fault, process, reply, sent in invalid_steps():
        with subtests.test(fault):
            given = process.model_copy(deep=True)
            with pytest.raises(InvalidInputError) as caught:
                await repository.advance(process, reply=reply, sent=sent)
            assert caught.value.field == fault
            assert repr(process) == repr(given)  # NaN is not itself
    await engine.dispose()


async def test_a_step_that_cannot_be_stored_leaves_everything_as_it_was(waiting: Waiting) -> None:
    statements: list[object] = []
    before = await waiting.everything()
    event.listen(waiting.engine.sync_engine, "before_cursor_execute", lambda *context: statements.append(context))
    for invalid in ([new_command(), new_command(command_type="")], [waiting.asked, waiting.asked]):
        with pytest.raises(InvalidInputError):
            await waiting.repository.advance(waiting.next(), waiting.conn, reply=reply_to(waiting.asked), sent=invalid)
    assert statements == []
    assert await waiting.everything() == before
