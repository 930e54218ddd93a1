"""FastAPI: place an order, record a reply, read the trail: `pip install fastapi uvicorn; uvicorn examples.web:app`."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid5

from fastapi import FastAPI, Request, Response
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import commandbus_process as cp
from commandbus_process.migrations import migrate

engine = create_async_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
repository = cp.PostgresProcessRepository(engine)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    await migrate(engine)  # several workers may do this at once
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
    order.completed_at = datetime.now(UTC)
    return await repository.advance(order, reply=cp.StepReply(command_id, outcome))


@app.get("/orders/{order_id}")
async def trail(order_id: UUID) -> list[cp.ProcessAuditEntry]:
    return await repository.get_audit_trail("orders", order_id)


@app.exception_handler(cp.ProcessRepositoryError)
async def refuse(_: Request, error: cp.ProcessRepositoryError) -> Response:
    """Answer 503 if trying again can help (an unknown command may still come), 404 or 409 otherwise."""
    return Response(str(error), 503 if error.retryable else 404 if isinstance(error, LookupError) else 409)
