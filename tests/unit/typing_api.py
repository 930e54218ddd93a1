"""How the public API types out; checked by mypy and basedpyright, and never run."""

from collections.abc import AsyncIterator, Collection, Iterator
from datetime import timedelta
from typing import Any, assert_type
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from commandbus_process import (
    JsonObject,
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessRepository,
    ProcessStatus,
    RawStates,
    ReplyOutcome,
    StateVersions,
)


class Order(BaseModel):
    total: int


class Refund(BaseModel):
    amount: int


async def untyped(engine: AsyncEngine, conn: AsyncConnection, key: UUID, entry: ProcessAuditEntry) -> None:
    repository = PostgresProcessRepository(engine)
    assert_type(repository, PostgresProcessRepository[JsonObject])
    assert_type(await repository.get_by_id("orders", key), ProcessMetadata[JsonObject] | None)
    assert_type(await repository.get_by_id("orders", key, conn), ProcessMetadata[JsonObject] | None)
    await repository.save(ProcessMetadata(domain="orders", process_id=key, process_type="order", state={"total": 1}))
    plain: ProcessMetadata = ProcessMetadata(domain="orders", process_id=key, process_type="order", state={"a": [1]})
    await repository.update(plain, conn=conn)
    assert_type(plain.state, JsonObject)
    assert_type(plain.version, int | None)
    await repository.log_step("orders", key, entry, conn)
    await repository.update_step_reply("orders", key, key, entry, conn)
    assert_type(await repository.get_audit_trail("orders", key), list[ProcessAuditEntry])
    assert_type(await repository.get_completed_steps("orders", key), list[str])
    assert_type(entry.duration, timedelta | None)
    assert_type(entry.reply_outcome, ReplyOutcome | None)
    await repository.get_by_id("orders", str(key))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def typed(engine: AsyncEngine, key: UUID, statuses: Collection[ProcessStatus]) -> None:
    repository = PostgresProcessRepository(engine, state_type=Order)
    assert_type(repository, PostgresProcessRepository[Order])
    found = await repository.get_by_id("orders", key)
    assert found is not None
    assert_type(found.state, Order)
    assert_type(await repository.find_by_status("orders", statuses), list[ProcessMetadata[Order]])
    refund = ProcessMetadata(domain="orders", process_id=key, process_type="refund", state=Refund(amount=1))
    await repository.save(refund)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def union(engine: AsyncEngine, key: UUID) -> None:
    repository = PostgresProcessRepository[Order | Refund](engine, state_type=Order | Refund)
    found = await repository.get_by_id("orders", key)
    assert found is not None
    assert_type(found.state, Order | Refund)
    types: dict[str, type[Order | Refund]] = {"order": Order, "refund": Refund}
    by_type = PostgresProcessRepository(engine, state_type=types)
    assert_type(await by_type.get_by_id("orders", key), ProcessMetadata[Order | Refund] | None)


def rename(state: JsonObject) -> JsonObject:
    return {"total": state["amount"]}


def split(state: dict[str, Any]) -> dict[str, Any]:
    return state


async def versions(engine: AsyncEngine, key: UUID) -> None:
    orders = StateVersions(Order, version=3, upcasters={1: rename, 2: split}, downcasters={3: split}, write_version=2)
    assert_type(orders, StateVersions[Order])
    repository = PostgresProcessRepository(engine, state_type=orders)
    assert_type(repository, PostgresProcessRepository[Order])
    found = await repository.get_by_id("orders", key)
    assert_type(found, ProcessMetadata[Order] | None)
    assert_type(found.state_version if found else None, int | None)
    assert_type(PostgresProcessRepository(engine, state_type={"order": orders}), PostgresProcessRepository[Order])
    assert_type(PostgresProcessRepository(engine, state_type=RawStates()), PostgresProcessRepository[JsonObject])
    assert_type(PostgresProcessQueries(engine, state_type=orders), PostgresProcessQueries[Order])
    either = StateVersions[Order | Refund](Order | Refund, version=2, upcasters={1: rename})
    assert_type(PostgresProcessRepository(engine, state_type=either), PostgresProcessRepository[Order | Refund])
    PostgresProcessRepository[Order | Refund](engine, state_type={"order": orders, "refund": Refund})
    StateVersions(Order, version="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def locked(engine: AsyncEngine, conn: AsyncConnection, key: UUID) -> None:
    repository = PostgresProcessRepository(engine, state_type=Order)
    assert_type(await repository.get_by_id("orders", key, conn, for_update="nowait"), ProcessMetadata[Order] | None)
    assert_type(await repository.claim("orders", [], conn, limit=1), list[ProcessMetadata[Order]])
    assert_type(await repository.claim("orders", [], conn, limit=1, by="version"), list[ProcessMetadata[Order]])
    await repository.claim("orders", [], conn, limit=1, by="luck")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await repository.claim("orders", [], limit=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await repository.get_by_id("orders", key, conn, for_update="wait")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def advanced(engine: AsyncEngine, conn: AsyncConnection, key: UUID, entry: ProcessAuditEntry) -> None:
    repository = PostgresProcessRepository(engine, state_type=Order)
    process = ProcessMetadata[Order](domain="orders", process_id=key, process_type="order", state=Order(total=1))
    await repository.advance(process)
    await repository.advance(process, conn, reply=entry, sent=entry)
    await repository.advance(process, sent=[entry, entry], reply=None)
    await repository.advance(process, conn=conn, sent=(each for each in (entry,)))
    refund = ProcessMetadata[Refund](domain="orders", process_id=key, process_type="refund", state=Refund(amount=1))
    await repository.advance(refund)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await repository.advance(process, conn, entry)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await repository.advance(process, sent=[key])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def one_after_another(process: ProcessMetadata[Order]) -> AsyncIterator[ProcessMetadata[Order]]:
    yield process


async def steps_one_after_another(
    key: UUID, entry: ProcessAuditEntry
) -> AsyncIterator[tuple[str, UUID, ProcessAuditEntry]]:
    yield "orders", key, entry


async def in_bulk(engine: AsyncEngine, conn: AsyncConnection, key: UUID, entry: ProcessAuditEntry) -> None:
    untyped = PostgresProcessRepository(engine)
    plain: ProcessMetadata = ProcessMetadata(domain="orders", process_id=key, process_type="order", state={"a": [1]})
    assert_type(await untyped.save_many([plain]), int)
    assert_type(await untyped.save_many((plain for _ in range(2)), conn), int)
    typed = PostgresProcessRepository(engine, state_type=Order)
    order = ProcessMetadata[Order](domain="orders", process_id=key, process_type="order", state=Order(total=1))
    refund = ProcessMetadata[Refund](domain="orders", process_id=key, process_type="refund", state=Refund(amount=1))
    assert_type(await typed.save_many((order,)), int)
    assert_type(await typed.save_many(one_after_another(order), conn=conn), int)
    await typed.save_many([refund])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await typed.save_many([order, refund])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await untyped.save_many(one_after_another(order))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await typed.save_many(order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def entries() -> Iterator[ProcessAuditEntry]:
        yield entry

    await typed.log_many([("orders", key, order)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await typed.log_many(entry)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await untyped.log_many([("orders", key, entry)]), int)
    assert_type(await untyped.log_many((("orders", key, each) for each in entries()), conn), int)
    assert_type(await untyped.log_many(steps_one_after_another(key, entry)), int)
    await untyped.log_many([(key, entry)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def as_protocol(engine: AsyncEngine) -> ProcessRepository[Order]:
    return PostgresProcessRepository(engine, state_type=Order)


def as_untyped_protocol(engine: AsyncEngine) -> ProcessRepository:
    return PostgresProcessRepository(engine)


async def through_the_protocol(repository: ProcessRepository[Order], key: UUID, entry: ProcessAuditEntry) -> None:
    found = await repository.get_by_id("orders", key)
    assert found is not None
    await repository.advance(found, reply=entry, sent=[entry])
    assert_type(await repository.save_many(one_after_another(found)), int)
    assert_type(await repository.log_many([("orders", key, entry)]), int)
    assert_type(await repository.log_many(steps_one_after_another(key, entry)), int)
