"""A process manager: it reserves stock and charges a card. If the card is refused, it gives the stock back."""

import asyncio
import os
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import commandbus_process as cp
from commandbus_process.migrations import migrate

NEXT = {"ReserveStock": ["ChargeCard"], "ChargeCard": []}
UNDO = {"ReserveStock": "ReleaseStock", "ChargeCard": "RefundCard"}


def command(order_id: UUID, name: str, undoes: UUID | None = None) -> cp.ProcessAuditEntry:
    """Return a command. The same step of an order always has the same command id, so it cannot be logged twice."""
    return cp.ProcessAuditEntry(step_name=name, command_id=uuid5(order_id, name), command_type=name, compensates=undoes)


async def on_reply(order_id: UUID, reply: cp.StepReply, repository: cp.ProcessRepository) -> list[cp.ProcessAuditEntry]:
    """Record a reply and log the next command, in one step. Return what to send. A repeated reply sends nothing."""
    order = await repository.get_by_id("orders", order_id)
    trail = {entry.command_id: entry for entry in await repository.get_audit_trail("orders", order_id)}
    if order is None or reply.command_id not in trail:  # the reply may be faster than the transaction that sent
        raise cp.StepNotFoundError("orders", order_id, reply.command_id)
    undoes, sent = trail[reply.command_id].compensates, []
    order.status = cp.ProcessStatus.WAITING_FOR_TSQ  # a person has to decide, unless one of these is the case
    if undoes is None and reply.outcome == "SUCCESS":
        sent = [command(order_id, name) for name in NEXT[trail[reply.command_id].step_name]]
        order.status = cp.ProcessStatus.WAITING_FOR_REPLY if sent else cp.ProcessStatus.COMPLETED
    elif undoes is None or reply.outcome == "SUCCESS":
        steps = await repository.get_steps_to_compensate("orders", order_id)
        sent = [command(order_id, UNDO[s.step_name], s.command_id) for s in steps if s.command_id != undoes][:1]
        order.status = cp.ProcessStatus.COMPENSATING if sent else cp.ProcessStatus.COMPENSATED
    order.current_step = sent[0].step_name if sent else None
    order.completed_at = datetime.now(UTC) if order.status.is_terminal else None
    return sent if await repository.advance(order, reply=reply, sent=sent) else []


async def main() -> None:
    engine = create_async_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    await migrate(engine)
    repository, order_id = cp.PostgresProcessRepository(engine), uuid4()
    order = cp.ProcessMetadata[cp.JsonObject](domain="orders", process_id=order_id, process_type="order", state={})
    order.status, order.current_step = cp.ProcessStatus.WAITING_FOR_REPLY, "ReserveStock"
    await repository.save(order, sent=(sent := [command(order_id, "ReserveStock")]))
    while sent:
        outcome = cp.ReplyOutcome("FAILED" if sent[0].step_name == "ChargeCard" else "SUCCESS")
        name, reply = sent[0].step_name, cp.StepReply(sent[0].command_id, outcome)
        sent, again = [await on_reply(order_id, reply, repository) for _ in range(2)]  # a bus delivers twice
        print(name, reply.outcome, "- delivered again, it sends", again)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
