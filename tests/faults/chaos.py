"""Kill the database server under load, again and again, and count what was lost.

    python -m tests.faults.chaos --seconds 120 --seed 7

It goes on until it has run that long, with at least so many kills and operations. Then it does the same with a primary
and its standby: each time the primary is killed, and the standby takes over. It exits with 1 if anything was lost or
torn, or if it did not get there in time.
"""

import argparse
import asyncio
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import FrameType

from sqlalchemy.ext.asyncio import create_async_engine

from tests.faults import failover
from tests.faults.failover import meanwhile
from tests.faults.ledger import Outcome, Verdict, verify
from tests.faults.load import ON_A_CONNECTION, Load
from tests.faults.replicas import replicas
from tests.faults.servers import KillableServer, killable_server
from tests.support.databases import async_url

_WORKERS = 8


@dataclass(frozen=True)
class Goal:
    """What has to be reached before the run ends, all of it.

    Attributes:
        operations_between_kills: On average.
        limit: Seconds after which a run that has not got there fails.
    """

    seconds: float
    kills: int
    operations: int
    operations_between_kills: int
    limit: float


@dataclass(frozen=True)
class Result:
    """What became of a run."""

    load: Load
    kills: int
    verdict: Verdict
    seed: int
    seconds: float

    def __str__(self) -> str:
        operations, ledger = self.load.operations, self.load.ledger
        with_conn = sum(operations[kind] for kind in ON_A_CONNECTION)
        transactions = sum(
            write.kind in ON_A_CONNECTION and write.outcome is Outcome.ACKNOWLEDGED for write in ledger.writes.values()
        )
        return (
            f"chaos: {operations.total():,} operations ({with_conn:,} with conn in {transactions:,} acknowledged "
            f"transactions, {operations.total() - with_conn:,} without), {self.kills} kills, "
            f"{self.load.interruptions:,} writes interrupted, {ledger.count(Outcome.UNKNOWN):,} outcomes left unknown "
            f"({self.verdict.kept:,} kept whole, {self.verdict.absent:,} absent), {self.verdict}, "
            f"seed {self.seed}, {self.seconds:.0f} s"
        )


async def run(server: KillableServer, seed: int, goal: Goal, report: Callable[[str], object]) -> Result:
    """Load the server and kill it until the goal is reached; the last thing to happen under load is a kill.

    Raises:
        TimeoutError: The goal was not reached within its limit.
    """
    random = Random(seed)  # noqa: S311 - to be the same again, not to be secret
    begun = time.monotonic()
    kills = 0
    is_over = False
    # Without pool_pre_ping, so that every lost connection is met in the middle of some work.
    engine = create_async_engine(
        async_url(server.application_url), pool_size=_WORKERS, max_overflow=0, connect_args={"connect_timeout": 10}
    )
    load = Load(engine)

    def is_reached() -> bool:
        return (
            kills >= goal.kills
            and load.operations.total() >= goal.operations
            and time.monotonic() - begun >= goal.seconds
        )

    try:
        async with asyncio.timeout(goal.limit), asyncio.TaskGroup() as workers:
            for _ in range(_WORKERS):
                workers.create_task(load.work(Random(random.random()), lambda: is_over))  # noqa: S311 - as above
            while not is_reached():
                # Counted from the last start on, so that the server never dies idle.
                await load.more_operations(random.randint(1, 2 * goal.operations_between_kills))
                await meanwhile(server.kill)
                kills += 1
                await meanwhile(server.start)
                report(
                    f"{time.monotonic() - begun:5.1f} s: kill {kills}, {load.operations.total():,} operations, "
                    f"{load.interruptions:,} writes interrupted"
                )
            is_over = True
    finally:
        await engine.dispose()
    return Result(load, kills, verify(server.url, load.ledger), seed, time.monotonic() - begun)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and return the exit code: 0, or 1 if anything was lost or torn, or the goal was not reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="run at least that long (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of what happens at random (default: another one each time)")
    parser.add_argument("--kills", type=int, default=20, help="at least so many (default: %(default)s)")
    parser.add_argument("--operations", type=int, default=10_000, help="at least so many (default: %(default)s)")
    parser.add_argument("--failovers", type=int, default=5, help="of the primary to its standby (default: %(default)s)")
    options = parser.parse_args(arguments)
    goal = Goal(
        seconds=options.seconds,
        kills=options.kills,
        operations=options.operations,
        operations_between_kills=400,
        limit=2 * options.seconds + 300,
    )
    failover_goal = failover.Goal(
        failovers=options.failovers,
        operations=options.operations // 4,
        operations_between=400,
        limit=60 * options.failovers + options.seconds,
    )
    seed: int = secrets.randbelow(2**32) if options.seed is None else options.seed
    signal.signal(signal.SIGTERM, _interrupt)  # the server must not be left behind
    _say(f"seed {seed}")
    try:
        with killable_server() as server:
            result = asyncio.run(run(server, seed, goal, _say))
        _say(str(result))
        faults = result.verdict.faults
        if options.failovers:
            with replicas() as pair:
                pair.start()
                failed_over = asyncio.run(failover.run(pair, seed, failover_goal, _say))
            _say(str(failed_over))
            faults += failed_over.verdict.faults
    except TimeoutError:
        _say(f"chaos: not done in time ({goal.limit:.0f} s, {failover_goal.limit:.0f} s), seed {seed}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if faults else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
