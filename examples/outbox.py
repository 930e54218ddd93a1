"""An application's own table and an outbox, in one transaction with the process: all three are written, or none."""

import asyncio
import os
from uuid import UUID, uuid4, uuid5

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

import commandbus_process as cp
from commandbus_process.migrations import migrate

metadata = sa.MetaData()  # your tables; your own Alembic migrates them
orders = sa.Table("orders", metadata, sa.Column("id", sa.Uuid, primary_key=True), sa.Column("total", sa.Integer))
orders.append_constraint(sa.CheckConstraint("total > 0"))
content = sa.Column("process_id", sa.Uuid), sa.Column("command_id", sa.Uuid), sa.Column("command", sa.Text)
outbox = sa.Table("outbox", metadata, sa.Column("position", sa.Integer, sa.Identity(), primary_key=True), *content)
engine = create_async_engine(sa.make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
repository = cp.PostgresProcessRepository(engine)


async def place_order(order_id: UUID, total: int) -> None:
    charge = cp.ProcessAuditEntry(step_name="charge", command_id=uuid5(order_id, "charge"), command_type="ChargeCard")
    process = cp.ProcessMetadata[cp.JsonObject](domain="orders", process_id=order_id, process_type="order", state={})
    process.status, process.current_step = cp.ProcessStatus.WAITING_FOR_REPLY, charge.step_name
    message = {"process_id": order_id, "command_id": charge.command_id, "command": charge.command_type}
    async with engine.begin() as conn:
        await repository.save(process, conn, sent=charge)
        await conn.execute(sa.insert(outbox).values(message))
        await conn.execute(sa.insert(orders).values(id=order_id, total=total))


async def send_some() -> None:
    """Send what has been committed. If this crashes before its commit, the command is sent again, with the same id."""
    oldest = sa.select(outbox).order_by(outbox.c.position).limit(10)
    async with engine.begin() as conn:
        for row in await conn.execute(oldest.with_for_update(skip_locked=True)):
            print("sent:", row.command)  # hand it to your message bus here
            await conn.execute(sa.delete(outbox).where(outbox.c.position == row.position))


async def main() -> None:
    await migrate(engine)
    async with engine.begin() as conn:
        await conn.run_sync(metadata.create_all)
    await place_order(uuid4(), 42)
    try:
        await place_order(uuid4(), -1)  # the database rejects it
    except IntegrityError:
        print("refused")
    async with engine.connect() as conn:
        for table in (orders, cp.tables.process, outbox):
            print(table.name, await conn.scalar(sa.select(sa.func.count()).select_from(table)))
    await send_some()
    await engine.dispose()


asyncio.run(main())
