"""Workers that share a backlog. Each worker claims orders that no other worker holds, and ships them."""

import asyncio
import os
from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessMetadata,
    ProcessStatus,
    run_in_transaction,
)
from commandbus_process.migrations import migrate

engine = create_async_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
repository = PostgresProcessRepository(engine)


async def ship_some(conn: AsyncConnection) -> list[UUID]:
    """Ship up to five orders in one transaction. If the worker crashes, its orders are unlocked, and not shipped."""
    orders = await repository.claim("orders", [ProcessStatus.PENDING], conn, limit=5)
    for order in orders:
        order.state = {"parcels": 1}
        order.status, order.completed_at = ProcessStatus.COMPLETED, datetime.now(UTC)
        await repository.update(order, conn)
    return [order.process_id for order in orders]


async def worker() -> list[UUID]:
    """Work until nothing is left. A worker that runs all the time would wait a moment, and look again."""
    shipped: list[UUID] = []
    while some := await run_in_transaction(engine, ship_some):
        shipped += some
    return shipped


async def main() -> None:
    await migrate(engine)
    """Let four workers ship forty orders."""
    orders = (
        ProcessMetadata[JsonObject](domain="orders", process_id=uuid4(), process_type="order", state={})
        for _ in range(40)
    )
    print("to ship:", await repository.save_many(orders))
    shipped = [order_id for some in await asyncio.gather(*(worker() for _ in range(4))) for order_id in some]
    print("shipped:", len(shipped))
    print("shipped twice:", len(shipped) - len(set(shipped)))
    await engine.dispose()


asyncio.run(main())
