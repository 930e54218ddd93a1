"""What the replay and the check of it agree on: ids, and what the end of a step means for its process.

Everything else the check works out from the log for itself.
"""

from collections.abc import Sequence
from uuid import NAMESPACE_URL, UUID, uuid5

from commandbus_process import ProcessStatus, ReplyOutcome

PROCESS_TYPE = "case"

_OUTCOMES = {
    "ate_abort": ReplyOutcome.FAILED,
    "pi_abort": ReplyOutcome.FAILED,
    "withdraw": ReplyOutcome.CANCELED,
}


def case_process_id(domain: str, case_id: str) -> UUID:
    """Return the id of a case's process: the same case has the same id, so a second import would be noticed."""
    return uuid5(uuid5(NAMESPACE_URL, domain), case_id)


def step_command_id(process_id: UUID, position: int) -> UUID:
    """Return the id of the command that the event at this position of the case stands for."""
    return uuid5(process_id, str(position))


def step_outcome(transition: str) -> ReplyOutcome:
    """Translate XES's `lifecycle:transition`: two transitions mean a failure, one a cancellation."""
    return _OUTCOMES.get(transition.casefold(), ReplyOutcome.SUCCESS)


def final_status(outcomes: Sequence[ReplyOutcome]) -> ProcessStatus:
    """Say how a process ended whose steps ended like this.

    Steps after a failure or a cancellation count as its compensation. Where the last of them fails, the compensation
    did not come to its end either, and the process has failed.
    """
    if outcomes[-1] == ReplyOutcome.FAILED:
        return ProcessStatus.FAILED
    if ReplyOutcome.CANCELED in outcomes:
        return ProcessStatus.CANCELED
    return ProcessStatus.COMPENSATED if ReplyOutcome.FAILED in outcomes else ProcessStatus.COMPLETED
