"""If a trigger swallows one part of a step, nothing of the rest is kept."""

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from commandbus_process import (
    NothingWrittenError,
)
from tests.support.advancing import SHAPES, Waiting, new_command, reply_to
from tests.support.triggers import trigger

SWALLOWED = {
    "commands": "INSERT ON commandbus.process_audit",
    "one command": "INSERT ON commandbus.process_audit WHEN (NEW.step_name = 'charge')",
    "reply": "UPDATE ON commandbus.process_audit",
    "process": "UPDATE ON commandbus.process",
}


@asynccontextmanager
async def swallowing(administrator: AsyncEngine, what: str) -> AsyncGenerator[None]:
    """Have a trigger swallow a part of what is written."""
    async with administrator.begin() as connection:
        await connection.exec_driver_sql(trigger(f"BEFORE {SWALLOWED[what]}", name="swallow"))
    yield
    async with administrator.begin() as connection:
        await connection.execute(text("DROP FUNCTION public.swallow CASCADE"))


async def assert_nothing_is_kept(waiting: Waiting, what: str) -> None:
    before = await waiting.everything()
    for with_reply, names in SHAPES.values():
        is_concerned = {"reply": with_reply, "process": True}.get(what, bool(names))
        if not is_concerned:
            continue
        reply, sent = reply_to(waiting.asked) if with_reply else None, [new_command(name) for name in names]
        process, given = waiting.next(), waiting.next()
        savepoint = nullcontext() if waiting.conn is None else waiting.conn.begin_nested()
        with pytest.raises(NothingWrittenError) as caught:
            async with savepoint:
                await waiting.repository.advance(process, waiting.conn, reply=reply, sent=sent)
        assert (caught.value.domain, caught.value.process_id) == waiting.key
        assert process == given
        assert await waiting.everything() == before


@pytest.mark.own_database
async def test_where_a_trigger_swallows_one_part_nothing_of_the_rest_is_kept(
    committed: Waiting, administrator: AsyncEngine, subtests: pytest.Subtests
) -> None:
    for what in SWALLOWED:
        with subtests.test(what):
            async with swallowing(administrator, what):
                await assert_nothing_is_kept(committed, what)


@pytest.mark.own_database
async def test_where_a_trigger_swallows_one_part_the_callers_savepoint_undoes_the_rest(
    committed: Waiting, administrator: AsyncEngine, subtests: pytest.Subtests
) -> None:
    for what in SWALLOWED:
        with subtests.test(what):
            async with swallowing(administrator, what), committed.engine.begin() as conn:
                await assert_nothing_is_kept(dataclasses.replace(committed, conn=conn), what)
