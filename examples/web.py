"""FastAPI: place an order, record a reply, and read the audit trail. Try `uvicorn examples.web:app`."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID, uuid5

from alembic.command import upgrade
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import create_async_engine

import commandbus_process as cp
from commandbus_process.migrations import alembic_config

engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
repository = cp.PostgresProcessRepository(engine)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """Migrate when the server starts, and close the connections when it stops."""
    await asyncio.to_thread(upgrade, alembic_config(), "head")
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.put("/orders/{order_id}", status_code=201)
async def place(order_id: UUID) -> None:
    """Start the process of an order. Its first command is logged with it."""
    charge = cp.ProcessAuditEntry(step_name="charge", command_id=uuid5(order_id, "charge"), command_type="ChargeCard")
    order = cp.ProcessMetadata[cp.JsonObject](domain="orders", process_id=order_id, process_type="order", state={})
    order.status = cp.ProcessStatus.WAITING_FOR_REPLY
    await repository.save(order, sent=charge)


@app.put("/orders/{order_id}/replies/{command_id}")
async def reply(order_id: UUID, command_id: UUID, outcome: cp.ReplyOutcome) -> bool:
    """Record a reply and end the process. If the same reply comes again, nothing changes and the answer is `false`."""
    order = await repository.get_by_id("orders", order_id)
    if order is None:
        raise cp.ProcessNotFoundError("orders", order_id)
    order.status = cp.ProcessStatus.COMPLETED if outcome == "SUCCESS" else cp.ProcessStatus.FAILED
    return await repository.advance(order, reply=cp.StepReply(command_id, outcome))


@app.get("/orders/{order_id}")
async def trail(order_id: UUID) -> list[cp.ProcessAuditEntry]:
    """Return the audit trail."""
    return await repository.get_audit_trail("orders", order_id)


@app.exception_handler(cp.ProcessRepositoryError)
async def refuse(_: Request, error: cp.ProcessRepositoryError) -> JSONResponse:
    """Answer 503 if trying again can help, 404 if something does not exist, and 409 for a conflict."""
    return JSONResponse(str(error), 503 if error.retryable else 404 if isinstance(error, LookupError) else 409)
