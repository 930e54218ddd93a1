"""Replay an event log through the process repository, and read it back after a restart of the database server.

Run it with `make demo`. `LOG=path.csv` names the log. `DATABASE_URL` names a PostgreSQL server to use instead of an
embedded one.
"""

import argparse
import asyncio
import atexit
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import FrameType
from uuid import uuid4

from alembic.command import upgrade
from alembic.util import CommandError
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commandbus_process import (
    PostgresProcessQueries,
    PostgresProcessRepository,
    ProcessFilter,
    ProcessMetadata,
    ProcessRepositoryError,
    ProcessStatus,
    ReplyOutcome,
)
from commandbus_process.migrations import alembic_config
from demo.event_log import Case, EventLogError, read_event_log
from demo.order_log import write_order_log
from demo.replay import TASKS, import_in_bulk, remove, replay
from demo.rules import case_process_id, step_outcome
from demo.screen import (
    new_console,
    newest,
    numbers,
    plain_words,
    printable,
    slowest_steps,
    step_progress,
    timeline,
)
from demo.server import Server, ServerError, finished_before_interrupt, running_server

_NEWEST = 3
_REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
_LONGEST_TIMELINE = 15  # steps; more do not fit on a screen
_EXIT_FAILED, _EXIT_MALFORMED, _EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0, 1 (failed, or the data differ), 2 (malformed log), 130 (Ctrl-C)."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--log", type=Path, help="the event log (default: one of orders that is generated)")
    parser.add_argument("--keep", action="store_true", help="leave the demo's rows in the database of DATABASE_URL")
    options = parser.parse_args(arguments)
    named_server = os.environ.get("DATABASE_URL")
    if options.keep and not named_server:
        parser.error("--keep needs DATABASE_URL: the embedded server is thrown away")
    _end_like_ctrl_c()
    try:
        return _run(new_console(), options.log, named_server, keep=options.keep)
    except EventLogError as error:
        print(f"The event log cannot be used: {printable(str(error))}\nNothing was imported.", file=sys.stderr)
        return _EXIT_MALFORMED
    except CommandError as error:  # written for a person, in several lines
        print(f"The demo has failed: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except (ServerError, SQLAlchemyError, ProcessRepositoryError, TimeoutError, OSError) as error:
        print(f"The demo has failed: {plain_words(error)}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return _EXIT_INTERRUPTED


def _end_like_ctrl_c() -> None:
    """Handle `kill` and a closed terminal like Ctrl-C, so that the demo cleans up.

    SIGINT gets its handler, too: a shell that starts the demo in the background lets it ignore SIGINT.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _run(console: Console, log: Path | None, named_server: str | None, *, keep: bool) -> int:
    folder = Path(mkdtemp(prefix="commandbus-demo-"))
    atexit.register(rmtree, folder, ignore_errors=True)  # after the embedded server's own cleanup, which needs it
    if log is None:
        log = folder / "orders.csv"
        write_order_log(log)
        described = "a generated log of orders"
    else:
        described = str(log)
    cases = read_event_log(log)  # all of it, so that a malformed log leaves nothing in a database
    steps = sum(len(case.events) for case in cases)
    console.print(
        Text.assemble(
            ("Replaying ", "bold"), (printable(described), "bold"), f": {len(cases):,} cases, {steps:,} events"
        )
    )
    domain = f"demo-{uuid4().hex[:8]}"
    if not named_server:
        console.print("Starting an embedded PostgreSQL in a temporary folder.")
    with running_server(named_server, folder) as server:
        if not server.is_embedded:
            _announce(console, server, domain, keep=keep)
        upgrade(alembic_config(server.url.render_as_string(hide_password=False)), "head")
        console.print("The schema is up to date (alembic upgrade head).\n")
        with _rows_removed(console, server, domain, keep=keep):
            asyncio.run(_replay(console, server, domain, cases))
            server.restart()
            console.print(
                "\nThe database server was stopped and started again."
                if server.is_embedded
                else "\nYour database server was not restarted."
            )
            console.print("A second Python process reads everything back:")
            return _verify(server, log, domain)


def _announce(console: Console, server: Server, domain: str, *, keep: bool) -> None:
    console.print(
        Text.assemble(
            "DATABASE_URL is set, so this uses your server: ",
            (printable(server.shown_url), "bold"),
            "\n- alembic upgrade head creates the schema commandbus there, or upgrades it.",
            "\n- The demo changes only the rows of its own domain: ",
            (domain, "bold"),
            ". It leaves them there." if keep else ". It removes them at the end.",
            "\n- The server is not restarted.",
        )
    )


async def _replay(console: Console, server: Server, domain: str, cases: Sequence[Case]) -> None:
    engine = create_async_engine(server.url, pool_size=TASKS, max_overflow=0)
    repository = PostgresProcessRepository(engine)
    try:
        with step_progress(console, "Replaying", sum(len(case.events) for case in cases)) as on_step:
            totals = await replay(engine, domain, cases, on_step)
        found = await repository.find_by_status(domain, list(ProcessStatus))
        counts = {
            "Cases": f"{totals.cases:,}",
            "Steps": f"{totals.steps:,}",
            "Transactions": f"{totals.transactions:,}",
            "Steps a second": f"{totals.steps / totals.seconds:,.0f}",
        }
        console.print()
        console.print(numbers(counts, Counter(process.status for process in found)))
        where = "an embedded server" if server.is_embedded else "your server"
        console.print(f"Steps a second: from this computer to {where}, {TASKS} cases at a time.\n", style="dim")
        queries = PostgresProcessQueries(engine)
        everything = ProcessFilter(domain=domain)
        page = await queries.page(everything, limit=_NEWEST, newest_first=True, steps=True)
        console.print(newest(page, await queries.backlog(domain)))
        console.print()
        # A log is small enough to read all of its trails.
        console.print(slowest_steps(await queries.step_statistics(everything, allow_scan=True)))
        console.print()
        await _import_once_more(console, engine, domain, found, cases)
        case = most_telling(cases)
        process_id = case_process_id(domain, case.case_id)
        process = next(process for process in found if process.process_id == process_id)
        console.print(timeline(case.case_id, process, await repository.get_audit_trail(domain, process_id)))
    finally:
        await engine.dispose()


async def _import_once_more(
    console: Console, engine: AsyncEngine, domain: str, found: Sequence[ProcessMetadata], cases: Sequence[Case]
) -> None:
    """Import the replayed processes again in bulk, into another domain, in a transaction that is rolled back."""
    copy = f"{domain}-bulk"
    copies = {case_process_id(domain, case.case_id): case_process_id(copy, case.case_id) for case in cases}
    processes = [
        process.model_copy(update={"domain": copy, "process_id": copies[process.process_id]}) for process in found
    ]
    saved, logged, seconds = await import_in_bulk(engine, copy, processes, cases)
    console.print(
        f"Imported once more in bulk, and rolled back: {saved:,} processes and {logged:,} steps in {seconds:.2f} s, "
        f"{(saved + logged) / seconds:,.0f} rows a second.\n"
    )


def most_telling(cases: Sequence[Case]) -> Case:
    """Choose the case to show: with a compensation, if there is one, and with most steps that fit on a screen."""
    short = [case for case in cases if len(case.events) <= _LONGEST_TIMELINE]
    if not short:
        return min(cases, key=lambda case: len(case.events))
    return max(short, key=lambda case: (_is_compensated(case), len(case.events)))


def _is_compensated(case: Case) -> bool:
    return any(step_outcome(event.transition) != ReplyOutcome.SUCCESS for event in case.events[:-1])


def _verify(server: Server, log: Path, domain: str) -> int:
    """Compare the database with the log in another Python process, which shares no memory with this one."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "demo.verify", "--log", str(log.resolve()), "--domain", domain]
    # The URL is passed in the environment, because everybody on the computer can see command lines.
    environment = {**os.environ, "DATABASE_URL": server.url.render_as_string(hide_password=False)}
    limit = 120 + log.stat().st_size / 10_000  # seconds; far more than it takes
    try:
        return subprocess.run(command, cwd=_REPOSITORY_ROOT, env=environment, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        raise ServerError(f"the second process did not end within {limit:,.0f} s") from None


@contextmanager
def _rows_removed(console: Console, server: Server, domain: str, *, keep: bool) -> Generator[None]:
    """Remove the demo's rows from the user's server, however the block ends."""
    finished = False
    try:
        yield
        finished = True
    finally:
        if not server.is_embedded:
            condition = f"WHERE domain = '{domain}'"
            by_hand = f"DELETE FROM commandbus.process_audit {condition};\nDELETE FROM commandbus.process {condition};"  # noqa: S608 - shown, not run
            if keep and finished:
                console.print(f"\nThe rows of domain {domain} are still there. To remove them:\n{by_hand}")
            else:
                _remove(console, server, domain, by_hand)


def _remove(console: Console, server: Server, domain: str, by_hand: str) -> None:
    async def run() -> None:
        engine = create_async_engine(server.url)
        try:
            await remove(engine, domain)
        finally:
            await engine.dispose()

    try:
        with finished_before_interrupt():
            asyncio.run(run())
    except (SQLAlchemyError, TimeoutError, OSError) as error:
        print(f"The rows of domain {domain} are still there ({plain_words(error)}):\n{by_hand}", file=sys.stderr)
    else:
        console.print(f"\nThe rows of domain {domain} were removed from your database.")


if __name__ == "__main__":
    sys.exit(main())
