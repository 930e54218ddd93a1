"""`assert_redelivery_safe` lets right handlers pass, and finds what is wrong with the usual wrong ones."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

import pytest
from pydantic import BaseModel

from commandbus_process import (
    ConcurrentUpdateError,
    JsonObject,
    ProcessAlreadyExistsError,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessRepository,
    ProcessStatus,
    ReplyOutcome,
    StepReply,
)
from commandbus_process.testing import Fault, InMemoryProcessRepository, assert_redelivery_safe

Repository = ProcessRepository[JsonObject]
Handler = Callable[[StepReply, Repository], Awaitable[object]]
ORDER = UUID(int=1)
KEY = "orders", ORDER


def command(name: str, command_id: UUID | None = None) -> ProcessAuditEntry:
    return ProcessAuditEntry(step_name=name, command_id=command_id or uuid5(ORDER, name), command_type=name)


PAID = StepReply(command("charge").command_id, ReplyOutcome.SUCCESS, {"amount": 40})


async def given(repository: Repository) -> None:
    order = ProcessMetadata[JsonObject](domain="orders", process_id=ORDER, process_type="order", state={"paid": 0})
    order.status = ProcessStatus.WAITING_FOR_REPLY
    await repository.save(order, sent=command("charge"))


async def load(repository: Repository) -> ProcessMetadata:
    found = await repository.get_by_id(*KEY)
    assert found is not None
    return found


def pay(order: ProcessMetadata) -> None:
    paid = order.state["paid"]
    assert isinstance(paid, int)
    order.state["paid"] = paid + 40


# Right ones.


async def advances(reply: StepReply, repository: Repository) -> None:
    order = await load(repository)
    pay(order)
    await repository.advance(order, reply=reply, sent=command("ship"))


async def tries_again_after_a_conflict(reply: StepReply, repository: Repository) -> None:
    while True:
        try:
            return await advances(reply, repository)
        except ConcurrentUpdateError:
            continue


async def compares_false(reply: StepReply, repository: Repository) -> None:
    """The steps one by one: what comes last decides, and it is written only once."""
    order = await load(repository)
    await repository.update_step_reply(*KEY, reply.command_id, reply)
    await repository.log_step(*KEY, command("ship"))
    if order.current_step != "ship":
        order.current_step = "ship"
        pay(order)
        await repository.update(order)


async def looks_before_it_makes_an_id(reply: StepReply, repository: Repository) -> None:
    """The id is another one in each run, and that is right."""
    trail = await repository.get_audit_trail(*KEY)
    order = await load(repository)
    pay(order)
    there = [entry for entry in trail if entry.step_name == "ship"]
    await repository.advance(order, reply=reply, sent=there or command("ship", uuid4()))


# Wrong ones, and what is said about them.


async def makes_a_new_id(reply: StepReply, repository: Repository) -> None:
    order = await load(repository)
    await repository.advance(order, reply=reply, sent=command("ship", uuid4()))


async def logs_under_a_new_id(reply: StepReply, repository: Repository) -> None:
    await repository.update_step_reply(*KEY, reply.command_id, reply)
    await repository.log_step(*KEY, command("ship", uuid4()))


async def forgets_to_compare_false(reply: StepReply, repository: Repository) -> None:
    await repository.update_step_reply(*KEY, reply.command_id, reply)
    order = await load(repository)
    pay(order)
    await repository.update(order)


async def gives_up_if_it_was_recorded(reply: StepReply, repository: Repository) -> None:
    """Between its two writes, it can fail, too."""
    if await repository.update_step_reply(*KEY, reply.command_id, reply):
        order = await load(repository)
        pay(order)
        await repository.update(order)


async def swallows_a_conflict(reply: StepReply, repository: Repository) -> None:
    order = await load(repository)
    try:
        await repository.advance(order, reply=reply)
    except ConcurrentUpdateError:
        return


async def saves_another_one(_: StepReply, repository: Repository) -> None:
    refund = ProcessMetadata[JsonObject](domain="refunds", process_id=uuid4(), process_type="refund", state={})
    await repository.save(refund)


async def saves_and_wonders(_: StepReply, repository: Repository) -> None:
    refund = ProcessMetadata[JsonObject](domain="refunds", process_id=ORDER, process_type="refund", state={})
    await repository.save(refund)


class TwoAtOnce:
    """It remembers what it has done, but only once it has done it."""

    def __init__(self) -> None:
        self.done: set[UUID] = set()

    async def start(self, repository: Repository) -> None:
        self.done.clear()
        await given(repository)

    async def handle(self, reply: StepReply, repository: Repository) -> None:
        if reply.command_id not in self.done:
            await repository.log_step(*KEY, command("ship", uuid4()))
            self.done.add(reply.command_id)


@pytest.mark.parametrize(
    "handler",
    [advances, tries_again_after_a_conflict, compares_false, looks_before_it_makes_an_id],
    ids=lambda each: each.__name__,
)
async def test_a_right_handler_passes(handler: Handler) -> None:
    await assert_redelivery_safe(handler, PAID, given=given)


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        (
            makes_a_new_id,
            (
                "with the acknowledgement lost at advance() (writing call 1): "
                "the handler still raises ReplyConflictError (process"
            ),
        ),
        (
            logs_under_a_new_id,
            (
                "with the acknowledgement lost at log_step() (writing call 2): process "
                f"{ORDER}: 3 commands are in the trail (charge, ship, ship), and 2 without the fault"
            ),
        ),
        (
            forgets_to_compare_false,
            f"with the message delivered twice: process {ORDER}: state.paid is 80, and 40 without the fault",
        ),
        (
            gives_up_if_it_was_recorded,
            (
                "with the acknowledgement lost at update_step_reply() (writing call 1): process "
                f"{ORDER}: state.paid is 0, and 40 without the fault"
            ),
        ),
        (
            swallows_a_conflict,
            (
                f"with a conflict at advance() (writing call 1): process {ORDER}: command 1 (charge): "
                "reply_outcome is None, and <ReplyOutcome.SUCCESS: 'SUCCESS'> without the fault"
            ),
        ),
        (saves_another_one, "with the message delivered twice: 2 processes are stored, and 1 without the fault"),
        (
            saves_and_wonders,
            "with the message delivered twice: the handler still raises ProcessAlreadyExistsError (process",
        ),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
async def test_a_wrong_handler_is_found(handler: Handler, found: str) -> None:
    with pytest.raises(AssertionError) as caught:
        await assert_redelivery_safe(handler, PAID, given=given)
    assert f"- {found}" in str(caught.value)


async def test_two_workers_at_once() -> None:
    wrong = TwoAtOnce()
    with pytest.raises(AssertionError, match=r"with the message delivered twice at once: .* 3 commands"):
        await assert_redelivery_safe(wrong.handle, PAID, given=wrong.start, faults=[Fault.DELIVERED_TWICE_AT_ONCE])
    await assert_redelivery_safe(wrong.handle, PAID, given=wrong.start, faults=[Fault.DELIVERED_TWICE])


class Bus:
    """Sends the commands of a step if the step was taken now: after a lost acknowledgement it never sends them."""

    def __init__(self, *, also_again: bool) -> None:
        self.sent: set[UUID] = set()
        self._also_again = also_again

    async def start(self, repository: Repository) -> None:
        self.sent.clear()
        await given(repository)

    async def handle(self, reply: StepReply, repository: Repository) -> None:
        order, ship = await load(repository), command("ship")
        if await repository.advance(order, reply=reply, sent=ship) or self._also_again:
            self.sent.add(ship.command_id)


async def test_what_a_handler_does_elsewhere_is_compared() -> None:
    right, wrong = Bus(also_again=True), Bus(also_again=False)
    await assert_redelivery_safe(right.handle, PAID, given=right.start, effects=lambda: set(right.sent))
    with pytest.raises(
        AssertionError, match=r"the acknowledgement lost at advance\(\).*: the effects are set\(\), and"
    ):
        await assert_redelivery_safe(wrong.handle, PAID, given=wrong.start, effects=lambda: set(wrong.sent))
    await assert_redelivery_safe(wrong.handle, PAID, given=wrong.start)


async def test_a_field_that_is_ignored() -> None:
    await assert_redelivery_safe(
        forgets_to_compare_false, PAID, given=given, faults=[Fault.DELIVERED_TWICE], ignore=["state.paid"]
    )
    with pytest.raises(AssertionError, match=r"state\.paid"):
        await assert_redelivery_safe(
            forgets_to_compare_false, PAID, given=given, faults=[Fault.DELIVERED_TWICE], ignore=["state.pai"]
        )


async def test_a_handler_that_always_fails() -> None:
    async def fails(_: StepReply, repository: Repository) -> None:
        await given(repository)

    with pytest.raises(
        AssertionError, match=r"the handler raises ProcessAlreadyExistsError .* without any fault"
    ) as caught:
        await assert_redelivery_safe(fails, PAID, given=given)
    assert isinstance(caught.value.__cause__, ProcessAlreadyExistsError)


async def test_a_handler_that_writes_nothing() -> None:
    async def reads(_: StepReply, repository: Repository) -> None:
        await load(repository)

    with pytest.raises(AssertionError, match="wrote nothing"):
        await assert_redelivery_safe(reads, PAID, given=given)


class Order(BaseModel):
    paid: int = 0
    paid_at: datetime | None = None
    items: list[str] = []


async def test_each_run_has_a_repository_of_its_own() -> None:
    made: list[InMemoryProcessRepository[JsonObject]] = []

    def repository() -> InMemoryProcessRepository[JsonObject]:
        made.append(InMemoryProcessRepository())
        return made[-1]

    await assert_redelivery_safe(advances, PAID, repository=repository, given=given)
    assert len(made) == 1 + 3 + 2  # undisturbed, three faults at one call, two of the delivery


async def test_a_typed_state_is_compared_field_by_field_and_times_only_by_whether_there_is_one() -> None:
    async def order(repository: ProcessRepository[Order]) -> None:
        made = ProcessMetadata[Order](domain="orders", process_id=ORDER, process_type="order", state=Order())
        await repository.save(made, sent=command("charge"))

    async def handle(reply: StepReply, repository: ProcessRepository[Order]) -> None:
        found = await repository.get_by_id(*KEY)
        assert found is not None
        found.state.paid_at = datetime.now(UTC)
        found.state.items.append("book")
        await repository.update(found)
        await repository.update_step_reply(*KEY, reply.command_id, reply)

    def repository() -> InMemoryProcessRepository[Order]:
        return InMemoryProcessRepository(state_type=Order)

    with pytest.raises(AssertionError) as caught:
        await assert_redelivery_safe(handle, PAID, repository=repository, given=order, faults=[Fault.DELIVERED_TWICE])
    assert "state.items.1 is 'book', and missing without the fault" in str(caught.value)
    assert "paid_at" not in str(caught.value)
