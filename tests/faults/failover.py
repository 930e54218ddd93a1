"""Kill the primary under load, promote its standby, build a new standby, and again; count what was lost.

Replication is synchronous when a primary is killed: each acknowledged commit is on both servers. Between a promotion
and the next standby there is one server only, which does not wait for another. So writers stand still for as long as it
takes to kill, to promote and to connect, and not for as long as it takes to build a standby.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from typing_extensions import override

from commandbus_process import run_in_transaction
from tests.faults.ledger import Outcome, Verdict, Write, verify
from tests.faults.load import Load
from tests.faults.replicas import Replicas
from tests.support.databases import async_url

WORKERS = 8


@dataclass(frozen=True)
class Goal:
    """What has to be reached before the run ends, all of it.

    Attributes:
        operations_between: How many operations there are between two failovers, on average.
        limit: Seconds after which a run that has not got there fails.
    """

    failovers: int
    operations: int
    operations_between: int
    limit: float


class FailoverLoad(Load):
    """The load of `make chaos`, whose transactions are run by `run_in_transaction`.

    Attributes:
        killed_at: When the primary was killed last.
        standstills: For each worker and each failover: the seconds between what was acknowledged last before it, and
            what was acknowledged first after it.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._engine_of_transactions = engine
        self._acknowledged_at: dict[asyncio.Task[Any] | None, float] = {}
        self.killed_at = float("inf")
        self.standstills: list[float] = []

    @override
    def acknowledge(self, write: Write) -> None:
        super().acknowledge(write)
        now, worker = time.monotonic(), asyncio.current_task()
        before = self._acknowledged_at.get(worker)
        if before is not None and before < self.killed_at <= now:
            self.standstills.append(now - before)
        self._acknowledged_at[worker] = now

    @property
    def is_anybody_behind(self) -> bool:
        """Whether a worker has not gone on since the last failover."""
        return min(self._acknowledged_at.values()) < self.killed_at

    @override
    async def in_transaction(self, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        await run_in_transaction(self._engine_of_transactions, work)


@dataclass(frozen=True)
class Result:
    """What became of a run."""

    load: FailoverLoad
    failovers: int
    verdict: Verdict
    seed: int
    seconds: float

    def __str__(self) -> str:
        operations, ledger, standstills = self.load.operations, self.load.ledger, self.load.standstills
        return (
            f"failover: {operations.total():,} operations, {self.failovers} failovers, "
            f"{self.load.interruptions:,} writes interrupted, {ledger.count(Outcome.UNKNOWN):,} outcomes left unknown "
            f"({self.verdict.kept:,} kept whole, {self.verdict.absent:,} absent), {self.verdict}, a writer stood still "
            f"for {median(standstills):.2f} s (median), {max(standstills):.2f} s (longest), "
            f"seed {self.seed}, {self.seconds:.0f} s"
        )


async def run(pair: Replicas, seed: int, goal: Goal, report: Callable[[str], object]) -> Result:
    """Load the pair and fail over until the goal is reached, and until each worker has gone on after the last one.

    Args:
        pair: Both run. Afterwards one is dead.
        seed: Of what happens at random.
        goal: When it is enough.
        report: Called with a line after each failover.

    Raises:
        TimeoutError: The goal was not reached within its limit.
    """
    random = Random(seed)  # noqa: S311 - to be the same again, not to be secret
    begun = time.monotonic()
    failovers = 0
    is_over = False
    await meanwhile(lambda: pair.set_synchronous(synchronous=True))
    # As docs/production.md recommends.
    engine = create_async_engine(
        async_url(pair.application_url),
        pool_pre_ping=True,
        pool_size=WORKERS,
        max_overflow=0,
        connect_args={"connect_timeout": 10},
    )
    load = FailoverLoad(engine)

    def next_standby() -> None:
        pair.add_standby()
        pair.set_synchronous(synchronous=True)

    def fail_over() -> None:
        load.killed_at = time.monotonic()
        pair.fail_over()

    try:
        async with asyncio.timeout(goal.limit), asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(load.work(Random(random.random()), lambda: is_over))  # noqa: S311 - as above
            while True:
                await load.more_operations(random.randint(1, 2 * goal.operations_between))
                await meanwhile(fail_over)
                failovers += 1
                await load.more_operations(WORKERS)
                report(
                    f"{time.monotonic() - begun:5.1f} s: failover {failovers}, {load.operations.total():,} operations, "
                    f"{load.interruptions:,} writes interrupted"
                )
                if failovers >= goal.failovers and load.operations.total() >= goal.operations:
                    break
                await meanwhile(next_standby)
            while load.is_anybody_behind:
                await load.more_operations(1)
            is_over = True
    finally:
        await engine.dispose()
    return Result(load, failovers, verify(pair.primary.url, load.ledger), seed, time.monotonic() - begun)


async def meanwhile(work: Callable[[], None]) -> None:
    """Do it while the workers go on, and to its end, also if one of them fails: no server must be half started."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task])
