"""The rules that the replay and its verification share: ids, and how the end of a step affects its process.

Everything else the verification derives from the log by itself.
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
    """Return the id of a case's process. The same case always has the same id, so a second import would be noticed."""
    return uuid5(uuid5(NAMESPACE_URL, domain), case_id)


def step_command_id(process_id: UUID, position: int) -> UUID:
    """Return the id of the command for the event at this position of the case."""
    return uuid5(process_id, str(position))


def step_outcome(transition: str) -> ReplyOutcome:
    """Translate `lifecycle:transition` of XES into an outcome. Everything that is not in the table is a success."""
    return _OUTCOMES.get(transition.casefold(), ReplyOutcome.SUCCESS)


def final_status(outcomes: Sequence[ReplyOutcome]) -> ProcessStatus:
    """Return the final status of a process from the outcomes of its steps.

    Steps after a failure or a cancellation count as compensation. If the last step failed, the compensation is not
    complete, so the process has failed.
    """
    if outcomes[-1] == ReplyOutcome.FAILED:
        return ProcessStatus.FAILED
    if ReplyOutcome.CANCELED in outcomes:
        return ProcessStatus.CANCELED
    return ProcessStatus.COMPENSATED if ReplyOutcome.FAILED in outcomes else ProcessStatus.COMPLETED
