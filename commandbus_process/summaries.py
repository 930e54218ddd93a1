"""What the queries return: processes without their states, pages of them, and numbers."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar
from uuid import UUID

from pydantic import ConfigDict

from commandbus_process.models import ProcessStatus, ProcessWithoutState, Version

ItemT = TypeVar("ItemT")


class ProcessSummary(ProcessWithoutState):
    """A process as it is listed: everything but its state. It cannot be changed or written."""

    model_config = ConfigDict(frozen=True)

    version: Version
    open_commands: int | None = None
    """How many of its commands have no reply. `None`: the query did not ask for the steps."""
    in_step_since: datetime | None = None
    """When the first command of its current step was sent. `None`: none was, or the query did not ask for the steps."""


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """One page of a list.

    Attributes:
        items: The processes or commands, in the order of the list.
        next: The cursor that reads the next page, as `after`. It can stand in a URL. `None`: this is the last page.
    """

    items: list[ItemT]
    next: str | None


@dataclass(frozen=True, slots=True)
class Count:
    """How many processes match a filter.

    Attributes:
        value: The number or, if it is not exact, the number up to which was counted.
        exact: Whether no more processes match.
    """

    value: int
    exact: bool


@dataclass(frozen=True, slots=True)
class BacklogGroup:
    """The processes of one type, in one status and one step, that have not ended.

    Attributes:
        process_type: Their type.
        status: Their status.
        current_step: Their step; `None`: none.
        processes: How many they are.
        oldest: When the oldest of them was created; `None`: at a time that Python cannot represent.
        overdue: How many of them are past their deadline.
    """

    process_type: str
    status: ProcessStatus
    current_step: str | None
    processes: int
    oldest: datetime | None
    overdue: int


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """How often a step was taken, how it ended, and how long its replies took.

    Attributes:
        step_name: The step.
        commands: How many commands were logged for it.
        success: How many of them ended with `SUCCESS`.
        failed: How many ended with `FAILED`.
        canceled: How many ended with `CANCELED`.
        open: How many have no reply.
        median: The median time from `sent_at` to `received_at`; `None`: no reply has come.
        percentile_95: The time within which 95 of 100 replies came.
        percentile_99: The time within which 99 of 100 replies came.
    """

    step_name: str
    commands: int
    success: int
    failed: int
    canceled: int
    open: int
    median: timedelta | None
    percentile_95: timedelta | None
    percentile_99: timedelta | None


@dataclass(frozen=True, slots=True)
class OpenCommand:
    """A command that has no reply.

    Attributes:
        domain: The domain of its process.
        process_id: The id of its process.
        process_type: The type of its process.
        business_key: The business key of its process.
        step_name: Its step.
        command_id: Its id.
        command_type: Its type.
        sent_at: When it was sent.
    """

    domain: str
    process_id: UUID
    process_type: str
    business_key: str | None
    step_name: str
    command_id: UUID
    command_type: str
    sent_at: datetime
