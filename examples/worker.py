"""Workers that share a backlog. Each claims orders that no other worker holds, ships them, and lets them go."""

import asyncio
import os
from datetime import UTC, datetime
from uuid import uuid4

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


async def ship_some(conn: AsyncConnection) -> int:
    """Ship up to five orders in one transaction. If the worker dies in it, the orders are free again, and unshipped."""
    orders = await repository.claim("orders", [ProcessStatus.PENDING], conn, limit=5)
    for order in orders:
        order.state = {"parcels": 1}
        order.status, order.completed_at = ProcessStatus.COMPLETED, datetime.now(UTC)
        await repository.update(order, conn)
    return len(orders)


async def worker() -> int:
    """Work until nothing is left. A worker that lives on would wait a moment here, and look again."""
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
    shipped = await repository.find_by_status("orders", [ProcessStatus.COMPLETED])
    print("written twice:", sum(order.version != 2 for order in shipped))  # noqa: PLR2004 - 1 when saved, 2 when shipped
    await engine.dispose()


upgrade(alembic_config(), "head")
asyncio.run(main())
