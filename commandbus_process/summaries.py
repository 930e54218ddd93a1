"""What the queries return: processes without their states, pages of them, and numbers."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import ConfigDict

from commandbus_process.models import ProcessWithoutState, Version


class ProcessSummary(ProcessWithoutState):
    """A process as it is listed: everything but its state. It cannot be changed or written."""

    model_config = ConfigDict(frozen=True)

    version: Version
    open_commands: int | None = None
    """How many of its commands have no reply. `None`: the query did not ask for the steps."""
    in_step_since: datetime | None = None
    """When the first command of its current step was sent. `None`: none was, or the query did not ask for the steps."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list of processes.

    Attributes:
        items: The processes, in the order of the list.
        next: The cursor that reads the next page, as `after`. It can stand in a URL. `None`: this is the last page.
    """

    items: list[ProcessSummary]
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
