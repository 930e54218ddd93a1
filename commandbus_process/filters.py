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
        current_step: The step that the process is in.
        business_key: What people call the process.
        created_after: The process was created at this time or later. Times must be timezone-aware.
        created_before: The process was created before this time.
        updated_before: The process was last updated before this time.
        deadline_before: The process has a deadline, and it is before this time.
    """

    domain: Name
    statuses: Collection[ProcessStatus] | None = None
    process_type: Name | None = None
    current_step: Name | None = None
    business_key: Name | None = None
    created_after: UtcDatetime | None = None
    created_before: UtcDatetime | None = None
    updated_before: UtcDatetime | None = None
    deadline_before: UtcDatetime | None = None
