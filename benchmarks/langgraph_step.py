"""LangGraph's PostgreSQL saver, for one step: `aput_writes` with the reply and the command, `aput` with the state."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import URL

from benchmarks.compare import check
from benchmarks.data import Target
from benchmarks.database import driver_url
from benchmarks.side import CONNECTION_TIMEOUT, Peer, command, reply, timed


def _checkpoint(state: Any, version: int) -> Checkpoint:  # noqa: ANN401 - a JSON object
    made = empty_checkpoint()
    made["channel_values"] = {"state": state}
    made["channel_versions"] = {"state": f"{version:032}"}
    return made


@asynccontextmanager
async def langgraph(url: URL, pool: int) -> AsyncGenerator[Peer]:
    """Give the saver, on a pool of this size, with the settings of the pool that its documentation has."""
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool[AsyncConnection[DictRow]](
        driver_url(url), kwargs=options, min_size=pool, max_size=pool, open=False
    ) as connections:
        await connections.wait(CONNECTION_TIMEOUT)
        saver = AsyncPostgresSaver(connections)
        await saver.setup()

        async def take(config: RunnableConfig, target: Target, after: Checkpoint, _conn: None) -> None:
            writes = [("reply", reply(target)), ("command", command(target))]
            await saver.aput_writes(config, writes, str(target.following["command_id"]))
            await saver.aput(config, after, {"source": "loop", "step": 1}, after["channel_versions"])

        async def run(where: str, targets: Sequence[Target], first: int, tasks: int) -> float:
            # Each process is a thread of LangGraph's, with a checkpoint of its state before the step.
            before = [_checkpoint(target.process["state"], 1) for target in targets]
            ids = [str(target.process["process_id"]) for target in targets]
            threads: list[RunnableConfig] = [{"configurable": {"thread_id": each, "checkpoint_ns": ""}} for each in ids]
            configs = await asyncio.gather(
                *(
                    saver.aput(thread, made, {"source": "input", "step": 0}, made["channel_versions"])
                    for thread, made in zip(threads, before, strict=True)
                )
            )
            calls = [
                partial(take, config, target, _checkpoint(target.changed["state"], 2))
                for config, target in zip(configs, targets, strict=True)
            ]
            for call in calls[:first]:
                await call(None)
            seconds = await timed(calls[first:], tasks, None)
            for thread, config, target in zip(threads, configs, targets, strict=True):
                written, newest = await saver.aget_tuple(config), await saver.aget_tuple(thread)
                assert written is not None
                assert newest is not None
                check(where, target.changed["state"], newest.checkpoint["channel_values"]["state"])
                check(where, [reply(target), command(target)], [value for *_, value in written.pending_writes or []])
                await saver.adelete_thread(str(target.process["process_id"]))
            return seconds

        yield Peer("LangGraph", run)
