"""Which processes are meant."""

from collections.abc import Collection
from dataclasses import dataclass

from commandbus_process.models import Name, ProcessStatus, UtcDatetime


@dataclass(frozen=True, kw_only=True)
class ProcessFilter:
    """Which processes are meant. All of the conditions must hold; a condition that is `None` is left out.

    To add a condition, add a field here, and a line in `commandbus_process/postgres/_listing.py`, where it becomes SQL.

    Attributes:
        domain: Their domain.
        statuses: Their status is one of these. An empty collection matches nothing.
        process_type: Their type.
        updated_before: They were updated before this time, which must be aware.
    """

    domain: Name
    statuses: Collection[ProcessStatus]
    process_type: Name | None = None
    updated_before: UtcDatetime | None = None
