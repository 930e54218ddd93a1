"""Workers that share a backlog. Each worker claims orders that no other worker holds, and ships them."""

import asyncio
import os
from datetime import UTC, datetime
from uuid import UUID, uuid4

from alembic.command import upgrade
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessMetadata,
    ProcessStatus,
    run_in_transaction,
)
from commandbus_process.migrations import alembic_config

engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
repository = PostgresProcessRepository(engine)
packed: list[UUID] = []


async def ship_some(conn: AsyncConnection) -> int:
    """Ship up to five orders in one transaction. If the worker crashes, its orders are unlocked, and not shipped."""
    orders = await repository.claim("orders", [ProcessStatus.PENDING], conn, limit=5)
    for order in orders:
        packed.append(order.process_id)
        order.state = {"parcels": 1}
        order.status, order.completed_at = ProcessStatus.COMPLETED, datetime.now(UTC)
        await repository.update(order, conn)
    return len(orders)


async def worker() -> int:
    """Work until nothing is left. A worker that runs all the time would wait a moment, and look again."""
    shipped = 0
    while some := await run_in_transaction(engine, ship_some):
        shipped += some
    return shipped


async def main() -> None:
    """Let four workers ship forty orders."""
    orders = (
        ProcessMetadata[JsonObject](domain="orders", process_id=uuid4(), process_type="order", state={})
        for _ in range(40)
    )
    print("to ship:", await repository.save_many(orders))
    print("shipped:", sum(await asyncio.gather(*(worker() for _ in range(4)))))
    print("packed twice:", len(packed) - len(set(packed)))
    await engine.dispose()


upgrade(alembic_config(), "head")
asyncio.run(main())
