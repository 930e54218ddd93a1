"""Unit tests of the process manager, without a server: `python -m pytest examples/test_process_manager.py`."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from process_manager import command, on_reply

import commandbus_process as cp
from commandbus_process.testing import InMemoryProcessRepository, assert_redelivery_safe

ORDER = UUID(int=1)
RESERVE, CHARGE = command(ORDER, "ReserveStock"), command(ORDER, "ChargeCard")
RESERVED = cp.StepReply(RESERVE.command_id, cp.ReplyOutcome.SUCCESS)
REFUSED = cp.StepReply(CHARGE.command_id, cp.ReplyOutcome.FAILED)


Given = Callable[[cp.ProcessRepository], Awaitable[None]]


async def handle(reply: cp.StepReply, repository: cp.ProcessRepository) -> None:
    await on_reply(ORDER, reply, repository)


async def waits_for_the_stock(repository: cp.ProcessRepository) -> None:
    order = cp.ProcessMetadata[cp.JsonObject](domain="orders", process_id=ORDER, process_type="order", state={})
    order.status = cp.ProcessStatus.WAITING_FOR_REPLY
    await repository.save(order, sent=RESERVE)


async def waits_for_the_card(repository: cp.ProcessRepository) -> None:
    await waits_for_the_stock(repository)
    await on_reply(ORDER, RESERVED, repository)


async def test_if_the_card_is_refused_the_stock_is_released() -> None:
    repository = InMemoryProcessRepository()
    await waits_for_the_card(repository)
    [release] = await on_reply(ORDER, REFUSED, repository)
    assert (release.step_name, release.compensates) == ("ReleaseStock", RESERVE.command_id)
    order = await repository.get_by_id("orders", ORDER)
    assert order is not None
    assert order.status == cp.ProcessStatus.COMPENSATING


@pytest.mark.parametrize(("given", "reply"), [(waits_for_the_stock, RESERVED), (waits_for_the_card, REFUSED)])
async def test_each_reply_can_be_delivered_again(given: Given, reply: cp.StepReply) -> None:
    await assert_redelivery_safe(handle, reply, given=given)
