"""Show the demo's output: progress, numbers, and a timeline of one process."""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from commandbus_process import (
    BacklogGroup,
    Page,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ProcessSummary,
    ReplyOutcome,
    StepStatistics,
)

_STATUS_STYLES = {
    ProcessStatus.COMPLETED: "green",
    ProcessStatus.COMPENSATED: "yellow",
    ProcessStatus.CANCELED: "yellow",
    ProcessStatus.FAILED: "red",
}
_OUTCOMES = {
    ReplyOutcome.SUCCESS: Text("succeeded", "green"),
    ReplyOutcome.FAILED: Text("failed", "bold red"),
    ReplyOutcome.CANCELED: Text("canceled", "yellow"),
}
_UNANSWERED = Text("no reply")

_UNITS = ((86_400, "day", "days"), (3_600, "h", "h"), (60, "min", "min"), (1, "s", "s"))


def new_console() -> Console:
    """Return a console on standard output, which may be a terminal, a pipe or a file, with any encoding."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # pytest's streams have none
            reconfigure(errors="backslashreplace")
    return Console(highlight=False)


def plain_words(error: BaseException) -> str:
    """Return the error in one line, without the SQL that SQLAlchemy would quote."""
    if isinstance(error, TimeoutError) and not str(error):
        return "the database did not answer in time"
    text = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
    return printable(text) or type(error).__name__


def printable(text: str) -> str:
    """Replace line breaks and control characters, which could garble the terminal."""
    return "".join(character if character.isprintable() else "·" for character in text)


@contextmanager
def step_progress(console: Console, what: str, total: int) -> Generator[Callable[[], None]]:
    """Show a progress bar. If the output is not a terminal, show one line at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task(f"{what:<12}", total=total)
        yield lambda: progress.advance(task)


def numbers(counts: Mapping[str, str], statuses: Mapping[ProcessStatus, int]) -> Table:
    """Return a table of the counts, and of the number of processes in each status."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 4, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for name, value in counts.items():
        table.add_row(name, value)
    for status in ProcessStatus:
        if status in statuses:
            label = Text.assemble("Processes ", (status.value, _STATUS_STYLES.get(status, "")))
            table.add_row(label, f"{statuses[status]:,}")
    return table


def slowest_steps(steps: Sequence[StepStatistics], most: int = 5) -> Table:
    """Return a table of the steps that took longest, by the time within which 95 of 100 replies came."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Slowest steps", overflow="fold", min_width=20)
    for name in ("Commands", "Not answered", "Half took", "95 of 100"):
        table.add_column(name, no_wrap=True, justify="right")
    nothing = timedelta()
    for step in sorted(steps, key=lambda step: step.percentile_95 or nothing, reverse=True)[:most]:
        took = ("" if each is None else human_duration(each) for each in (step.median, step.percentile_95))
        table.add_row(printable(step.step_name), f"{step.commands:,}", f"{step.open:,}", *took)
    return table


def newest(page: Page[ProcessSummary], backlog: Sequence[BacklogGroup]) -> Table:
    """Return a table of the newest processes, and how many have not ended."""
    not_ended = sum(group.processes for group in backlog)
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
        caption=f"{not_ended:,} have not ended, {sum(group.overdue for group in backlog):,} are past their deadline.",
        caption_justify="left",
    )
    for name in ("Newest processes", "Created (UTC)", "Status", "Open"):
        table.add_column(name, no_wrap=True)
    for process in page.items:
        status = Text(process.status.value, _STATUS_STYLES.get(process.status, ""))
        table.add_row(str(process.process_id), _moment(process.created_at), status, str(process.open_commands))
    return table


def timeline(case_id: str, process: ProcessMetadata, trail: Sequence[ProcessAuditEntry]) -> Group:
    """Return one process's audit trail as a timeline: each step, when it was sent, how long it took, and the end."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("#", justify="right")
    table.add_column("Sent (UTC)", no_wrap=True)
    table.add_column("Took", no_wrap=True, justify="right")
    table.add_column("Step", overflow="fold", min_width=20)
    table.add_column("Outcome", no_wrap=True)
    for number, entry in enumerate(trail, 1):
        took = "" if entry.duration is None or number == 1 else human_duration(entry.duration)
        table.add_row(
            str(number),
            _moment(entry.sent_at),
            took,
            Text(printable(entry.step_name)),
            _UNANSWERED if entry.reply_outcome is None else _OUTCOMES[entry.reply_outcome],
        )
    end = process.completed_at
    lasted = "" if end is None else f" after {human_duration(end - process.created_at)}"
    heading = Text.assemble(
        "Audit trail of case ",
        (printable(case_id), "bold"),
        ": ",
        (process.status.value, _STATUS_STYLES.get(process.status, "")),
        lasted,
    )
    attributes = process.state["attributes"]
    known = attributes.items() if isinstance(attributes, dict) else ()
    state = ", ".join(printable(f"{name} {value}") for name, value in known)
    legend = (
        "The log has only the end of each step. So a step counts as sent when the step before it was replied, and the "
        "first one when it ended. Steps after a failure or a cancellation count as compensation."
    )
    return Group(heading, Text(f"State: {state or 'no attributes'}", "dim"), "", table, "", Text(legend, "dim"))


def human_duration(duration: timedelta) -> str:
    """Return a duration in its two largest units: `18 h 20 min`."""
    seconds = duration.total_seconds()
    if seconds < 1:
        return "no time" if seconds == 0 else f"{seconds * 1000:.0f} ms"
    rest = round(seconds)
    parts: list[str] = []
    for size, one, many in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {one if count == 1 else many}" if count else "")
        if len(parts) == 2:  # noqa: PLR2004 - the two largest
            break
    return " ".join(part for part in parts if part)


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}"
