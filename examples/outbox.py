"""An application's own table and an outbox, in one transaction with the process: all three are written, or none."""

import asyncio
import os
from uuid import UUID, uuid4, uuid5

from alembic.command import upgrade
from sqlalchemy import CheckConstraint, Column, Integer, MetaData, Table, Text, Uuid, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

import commandbus_process as cp
from commandbus_process.migrations import alembic_config

metadata = MetaData()  # your tables; your own Alembic migrates them
orders = Table("orders", metadata, Column("id", Uuid, primary_key=True), Column("total", Integer))
orders.append_constraint(CheckConstraint("total > 0"))
outbox = Table("outbox", metadata, Column("id", Uuid, primary_key=True), Column("command", Text))
engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
repository = cp.PostgresProcessRepository(engine)


async def place_order(order_id: UUID, total: int) -> None:
    """Write the order, its process, and the command to send."""
    charge = cp.ProcessAuditEntry(step_name="charge", command_id=uuid5(order_id, "charge"), command_type="ChargeCard")
    process = cp.ProcessMetadata[cp.JsonObject](domain="orders", process_id=order_id, process_type="order", state={})
    process.status, process.current_step = cp.ProcessStatus.WAITING_FOR_REPLY, charge.step_name
    async with engine.begin() as conn:
        await repository.save(process, conn, sent=charge)
        await conn.execute(insert(outbox).values(id=charge.command_id, command=charge.command_type))
        await conn.execute(insert(orders).values(id=order_id, total=total))


async def send_some() -> None:
    """Send what has been committed. If this crashes before its commit, the command is sent again, with the same id."""
    async with engine.begin() as conn:
        for row in await conn.execute(select(outbox).limit(10).with_for_update(skip_locked=True)):
            print("sent:", row.command)  # hand it to your message bus here
            await conn.execute(delete(outbox).where(outbox.c.id == row.id))


async def main() -> None:
    """Place an order, and another one that the database rejects."""
    async with engine.begin() as conn:
        await conn.run_sync(metadata.create_all)
    await place_order(uuid4(), 42)
    try:
        await place_order(uuid4(), -1)
    except IntegrityError:
        print("refused")
    async with engine.connect() as conn:
        for table in (orders, cp.tables.process, outbox):
            print(table.name, await conn.scalar(select(func.count()).select_from(table)))
    await send_some()
    await engine.dispose()


upgrade(alembic_config(), "head")
asyncio.run(main())
