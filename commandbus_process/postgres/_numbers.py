"""Turn rows into numbers for operators, and into commands without a reply."""

from collections.abc import Callable
from datetime import datetime, timedelta

from commandbus_process._checked_rows import Row, quoted_time
from commandbus_process.errors import StoredDataError
from commandbus_process.models import ProcessStatus
from commandbus_process.postgres._reading import Rows, read_one_by_one
from commandbus_process.summaries import BacklogGroup, OpenCommand, StepStatistics


def read_backlog(rows: Rows) -> list[BacklogGroup]:
    """Return the groups of a backlog, by type, status and step."""
    groups = [
        BacklogGroup(status=ProcessStatus(row.pop("status")), oldest=_time_or_none(row.pop("oldest")), **row)
        for row in rows.one_by_one()
    ]
    return sorted(groups, key=lambda group: (group.process_type, group.status, group.current_step or ""))


def _time_or_none(text: str) -> datetime | None:
    # One damaged row does not hide the numbers of all others.
    try:
        return quoted_time(text)
    except (ValueError, OverflowError):
        return None


def read_statistics(rows: Rows) -> list[StepStatistics]:
    """Return the statistics of steps, by their names."""
    return sorted((_statistics(row) for row in rows.one_by_one()), key=lambda step: step.step_name)


def _statistics(row: Row) -> StepStatistics:
    seconds: list[float] | None = row.pop("seconds")
    median, percentile_95, percentile_99 = (
        (None, None, None) if seconds is None else (timedelta(seconds=each) for each in seconds)
    )
    return StepStatistics(**row, median=median, percentile_95=percentile_95, percentile_99=percentile_99)


def read_open_commands(rows: Rows, unreadable: Callable[[StoredDataError], object]) -> list[OpenCommand]:
    """Return commands without a reply.

    Args:
        rows: What was found.
        unreadable: Called with the error about each row that cannot be read. If it returns, the row is left out.
    """
    return read_one_by_one(rows, _open_command, unreadable)


def _open_command(row: Row) -> OpenCommand:
    try:
        return OpenCommand(sent_at=quoted_time(row.pop("sent_at")), **row)
    except (ValueError, OverflowError):
        what = f"the stored entry of command {row['command_id']}"
        why = "sent_at: the time cannot be represented"
        raise StoredDataError(row["domain"], row["process_id"], why, what=what) from None
