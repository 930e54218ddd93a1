"""A process manager: it reserves stock and charges a card. If the card is refused, it gives the stock back."""

import asyncio
import os
from uuid import UUID, uuid4, uuid5

from alembic.command import upgrade
from sqlalchemy.ext.asyncio import create_async_engine

import commandbus_process as cp
from commandbus_process.migrations import alembic_config

NEXT, UNDO = {"ReserveStock": "ChargeCard"}, {"ReserveStock": "ReleaseStock", "ChargeCard": "RefundCard"}
engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
repository = cp.PostgresProcessRepository(engine)


def command(order_id: UUID, name: str, compensates: UUID | None = None) -> cp.ProcessAuditEntry:
    """Return a command. The same step of an order always has the same command id, so it cannot be logged twice."""
    key = uuid5(order_id, name)
    return cp.ProcessAuditEntry(step_name=name, command_id=key, command_type=name, compensates=compensates)


async def on_reply(order_id: UUID, reply: cp.StepReply) -> list[cp.ProcessAuditEntry]:
    """Record a reply and log the next command, in one step. Return what to send. A repeated reply sends nothing."""
    order = await repository.get_by_id("orders", order_id)
    [answered] = [e for e in await repository.get_audit_trail("orders", order_id) if e.command_id == reply.command_id]
    if order is None:
        raise cp.ProcessNotFoundError("orders", order_id)
    if answered.compensates is None and reply.outcome == cp.ReplyOutcome.SUCCESS:
        sent = [command(order_id, NEXT[answered.step_name])] if answered.step_name in NEXT else []
        order.status = cp.ProcessStatus.WAITING_FOR_REPLY if sent else cp.ProcessStatus.COMPLETED
    elif answered.compensates is None or reply.outcome == cp.ReplyOutcome.SUCCESS:
        to_undo = await repository.get_steps_to_compensate("orders", order_id)
        left = [step for step in to_undo if step.command_id != answered.compensates]  # that one is undone now
        sent = [command(order_id, UNDO[step.step_name], step.command_id) for step in left[:1]]
        order.status = cp.ProcessStatus.COMPENSATING if sent else cp.ProcessStatus.COMPENSATED
    else:
        sent, order.status = [], cp.ProcessStatus.WAITING_FOR_TSQ  # it could not be undone: a person has to decide
    return sent if await repository.advance(order, reply=reply, sent=sent) else []


async def main() -> None:
    """Run one order, on a message bus that delivers each reply twice."""
    order = cp.ProcessMetadata[cp.JsonObject](domain="orders", process_id=uuid4(), process_type="order", state={})
    order.status = cp.ProcessStatus.WAITING_FOR_REPLY
    sent = [command(order.process_id, "ReserveStock")]
    await repository.save(order, sent=sent)
    while sent:
        outcome = "FAILED" if sent[0].step_name == "ChargeCard" else "SUCCESS"
        reply = cp.StepReply(sent[0].command_id, cp.ReplyOutcome(outcome))
        print(sent[0].step_name, outcome)
        sent = await on_reply(order.process_id, reply)
        print("  delivered again, it sends", await on_reply(order.process_id, reply))
    print(*[each.status for each in await repository.find_by_status("orders", list(cp.ProcessStatus))])
    await engine.dispose()


upgrade(alembic_config(), "head")
asyncio.run(main())
