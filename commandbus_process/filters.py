"""The filter that selects processes, shared by every method that lists them."""

from collections.abc import Collection
from dataclasses import dataclass

from commandbus_process.models import Name, ProcessStatus, UtcDatetime


@dataclass(frozen=True, kw_only=True)
class ProcessFilter:
    """Selects processes for which all conditions hold. A condition that is `None` is not checked.

    To add a condition, add a field here, and the line that turns it into SQL in
    `commandbus_process/postgres/_listing.py`.

    Attributes:
        domain: The domain of the processes.
        statuses: The process has one of these statuses. An empty collection matches nothing.
        process_type: The type of the processes.
        updated_before: The process was last updated before this time. It must be timezone-aware.
    """

    domain: Name
    statuses: Collection[ProcessStatus]
    process_type: Name | None = None
    updated_before: UtcDatetime | None = None
