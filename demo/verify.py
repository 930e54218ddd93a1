"""Read a replayed log back from the database and compare it with the file, step for step.

The demo runs this as a second Python process: `python -m demo.verify --log PATH --domain NAME`, with the database
in `DATABASE_URL`.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from commandbus_process import (
    JsonObject,
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessRepository,
    ProcessRepositoryError,
    ProcessStatus,
    ReplyOutcome,
)
from demo.event_log import Case, EventLogError, read_event_log
from demo.replay import TASKS
from demo.rules import PROCESS_TYPE, case_process_id, final_status, step_command_id, step_outcome
from demo.screen import new_console, plain_words, printable, step_progress
from demo.server import ServerError, parse_url

_SHOWN_DIFFERENCES = 5
_LONGEST_READ = 60  # seconds for one case


@dataclass(slots=True)
class Comparison:
    """The result of comparing the database with a log."""

    cases: int
    """The number of cases in the log."""
    steps: int
    """The number of steps in the log."""
    same_cases: int = 0
    same_steps: int = 0
    differences: list[str] = field(default_factory=list[str])


async def compare(
    repository: ProcessRepository[JsonObject],
    domain: str,
    cases: Sequence[Case],
    on_step: Callable[[], None] = lambda: None,
) -> Comparison:
    """Read every process of the domain through the repository, and return where it differs from the log."""
    result = Comparison(cases=len(cases), steps=sum(len(case.events) for case in cases))
    try:
        async with asyncio.timeout(_LONGEST_READ):
            found = await repository.find_by_status(domain, list(ProcessStatus))
    except ProcessRepositoryError as error:
        result.differences.append(str(error))
        return result
    processes = {process.process_id: process for process in found}
    expected = {case_process_id(domain, case.case_id) for case in cases}
    result.differences += [
        f"process {process_id} is no case of the log" for process_id in processes if process_id not in expected
    ]
    waiting = iter(cases)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(_work(repository, domain, waiting, processes, result, on_step))
    except ExceptionGroup as group_of_errors:  # the first one made the group cancel the other tasks
        raise group_of_errors.exceptions[0] from None
    return result


async def _work(
    repository: ProcessRepository[JsonObject],
    domain: str,
    waiting: Iterator[Case],
    processes: dict[UUID, ProcessMetadata],
    result: Comparison,
    on_step: Callable[[], None],
) -> None:
    for case in waiting:
        process = processes.get(case_process_id(domain, case.case_id))
        if process is None:
            result.differences.append(f"case {case.case_id!r} has no process")
            continue
        async with asyncio.timeout(_LONGEST_READ):
            of_trail, same_steps = await _trail_differences(repository, process, case, on_step)
        differences = [*_process_differences(process, case), *of_trail]
        result.differences += [f"case {case.case_id!r}{text}" for text in differences]
        result.same_steps += same_steps
        result.same_cases += not differences


def _process_differences(process: ProcessMetadata, case: Case) -> list[str]:
    attributes: dict[str, str] = {}
    for event in case.events:
        attributes |= event.case_attributes
    last = case.events[-1]
    failed = [event for event in case.events if step_outcome(event.transition) == ReplyOutcome.FAILED]
    expected: dict[str, object] = {
        "process_type": PROCESS_TYPE,
        "status": final_status([step_outcome(event.transition) for event in case.events]),
        "current_step": None,
        "state": {
            "case": case.case_id,
            "attributes": attributes,
            "steps_done": len(case.events),
            "last_step": last.activity,
        },
        "error_code": failed[-1].transition.casefold() if failed else None,
        "error_message": f"The step {failed[-1].activity!r} failed." if failed else None,
        "created_at": case.events[0].time,
        "completed_at": last.time,
    }
    return [f": {text}" for text in _field_differences(process, expected)]


async def _trail_differences(
    repository: ProcessRepository[JsonObject], process: ProcessMetadata, case: Case, on_step: Callable[[], None]
) -> tuple[list[str], int]:
    """Return the differences, and the number of steps that are the same."""
    try:
        trail = await repository.get_audit_trail(process.domain, process.process_id)
        completed = await repository.get_completed_steps(process.domain, process.process_id)
    except ProcessRepositoryError as error:
        return [f": {error}"], 0
    differences: list[str] = []
    same_steps = 0
    if len(trail) != len(case.events):
        differences.append(f": has {len(trail)} steps, and the log has {len(case.events)}")
    for position, (entry, expected) in enumerate(zip(trail, _expected_trail(process.process_id, case), strict=False)):
        of_step = _field_differences(entry, expected)
        differences += [f", step {position + 1}: {text}" for text in of_step]
        same_steps += not of_step
        on_step()
    succeeded = [event.activity for event in case.events if step_outcome(event.transition) == ReplyOutcome.SUCCESS]
    if completed != succeeded:
        differences.append(f": completed steps are {completed}, and the log has {succeeded}")
    return differences, same_steps


def _expected_trail(process_id: UUID, case: Case) -> Iterator[dict[str, object]]:
    sent_at = case.events[0].time
    for position, event in enumerate(case.events):
        yield {
            "step_name": event.activity,
            "command_id": step_command_id(process_id, position),
            "command_type": event.activity,
            "command_data": event.attributes,
            "sent_at": sent_at,
            "reply_outcome": step_outcome(event.transition),
            "reply_data": {"lifecycle:transition": event.transition} if event.transition else None,
            "received_at": event.time,
        }
        sent_at = event.time


def _field_differences(found: ProcessMetadata[Any] | ProcessAuditEntry, expected: dict[str, object]) -> list[str]:
    return [
        f"{name} is {_value(getattr(found, name))}, and the log has {_value(value)}"
        for name, value in expected.items()
        if getattr(found, name) != value
    ]


def _value(value: object) -> str:
    return repr(str(value)) if isinstance(value, datetime | UUID | StrEnum) else repr(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the result, and return the exit code: 0 if everything is as in the log."""
    parser = argparse.ArgumentParser(prog="python -m demo.verify", description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="the event log that was replayed")
    parser.add_argument("--domain", required=True, help="the domain that the demo named")
    options = parser.parse_args(arguments)
    console = new_console()
    try:
        cases = read_event_log(options.log)
        result = asyncio.run(_compare(console, os.environ.get("DATABASE_URL", ""), options.domain, cases))
    except (EventLogError, ServerError, SQLAlchemyError, TimeoutError, OSError) as error:
        print(f"Error: {plain_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _report(console, result)
    return 1 if result.differences else 0


async def _compare(console: Console, url: str, domain: str, cases: Sequence[Case]) -> Comparison:
    engine = create_async_engine(parse_url(url), pool_size=TASKS, max_overflow=0)
    try:
        with step_progress(console, "Reading back", sum(len(case.events) for case in cases)) as on_step:
            return await compare(PostgresProcessRepository(engine), domain, cases, on_step)
    finally:
        await engine.dispose()


def _report(console: Console, result: Comparison) -> None:
    counts = (
        f"{result.same_cases:,} of {result.cases:,} cases and {result.same_steps:,} of {result.steps:,} steps "
        "are as in the log"
    )
    if not result.differences:
        console.print(f"{counts}.", style="green")
        return
    console.print(f"{counts}; {len(result.differences):,} differences:", style="red")
    for text in result.differences[:_SHOWN_DIFFERENCES]:
        console.print(f"  {printable(text)}", markup=False)
    if len(result.differences) > _SHOWN_DIFFERENCES:
        console.print(f"  … and {len(result.differences) - _SHOWN_DIFFERENCES:,} more")


if __name__ == "__main__":
    sys.exit(main())
