"""DBOS, for one step: a step of a durable workflow, whose result is the state, the reply and the command.

It runs in a process of its own, since its threads look for work all the time, and would take time from the other sides.
The processes talk in lines of JSON.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from dbos import DBOS, DBOSConfig
from sqlalchemy import URL

from benchmarks.compare import DifferenceError, check
from benchmarks.data import Target, writing_targets
from benchmarks.database import driver_url
from benchmarks.side import Peer, command, reply

_ROOT = Path(__file__).resolve().parent.parent
_START_LIMIT = 60  # seconds
_END_LIMIT = 10  # seconds


@asynccontextmanager
async def dbos(url: URL, pool: int) -> AsyncGenerator[Peer]:
    """Start DBOS in a process of its own, on a pool of this size, and end it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.dbos_step", driver_url(url), str(pool)),
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    writer, reader = process.stdin, process.stdout

    async def run(where: str, targets: Sequence[Target], first: int, tasks: int) -> float:
        request = {"domain": targets[0].process["domain"], "count": len(targets), "first": first, "tasks": tasks}
        writer.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline() or b'{"error": "DBOS has ended"}')
        if "error" in answer:
            raise DifferenceError(f"{where}: {answer['error']}")
        return float(answer["seconds"])

    try:
        async with asyncio.timeout(_START_LIMIT):
            await reader.readline()
        yield Peer("DBOS", run)
    finally:
        writer.close()
        try:
            async with asyncio.timeout(_END_LIMIT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


_shares: dict[str, Sequence[Target]] = {}
_gate = asyncio.Event()
_ready = asyncio.Semaphore(0)


@DBOS.step()
async def _take(state: dict[str, Any], answer: dict[str, Any], sent: dict[str, Any]) -> list[dict[str, Any]]:
    return [state, answer, sent]


@DBOS.workflow()
async def _take_all(share: str) -> float:
    _ready.release()
    await _gate.wait()
    for target in _shares[share]:
        await _take(target.changed["state"], reply(target), command(target))
    return perf_counter()


async def _steps(targets: Sequence[Target], tasks: int) -> float:
    """Take the steps in as many workflows as tasks, and return the seconds from the first step to the last."""
    _gate.clear()
    _shares.clear()
    _shares.update({str(number): targets[number::tasks] for number in range(tasks)})
    handles = [await DBOS.start_workflow_async(_take_all, share) for share in _shares]
    for _ in handles:
        await _ready.acquire()
    started = perf_counter()
    _gate.set()
    ended = [await handle.get_result() for handle in handles]
    for handle, share in zip(handles, _shares.values(), strict=True):
        found = [step["output"] for step in await DBOS.list_workflow_steps_async(handle.get_workflow_id())]
        check("the steps of a workflow", [[each.changed["state"], reply(each), command(each)] for each in share], found)
    return max(ended) - started


async def _serve(url: str, pool: int) -> None:
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": url,
        "sys_db_pool_size": pool,
        "application_version": "1",
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    print(flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            targets, first = writing_targets(request["domain"], request["count"]), request["first"]
            try:
                await _steps(targets[:first], 1)
                answer: dict[str, Any] = {"seconds": await _steps(targets[first:], request["tasks"])}
            except DifferenceError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
