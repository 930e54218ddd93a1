"""Why a write changed nothing: from what is stored to the error that tells."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from commandbus_process.errors import (
    ConcurrentUpdateError,
    InvalidInputError,
    ProcessError,
    ProcessNotFoundError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from commandbus_process.models import ProcessAuditEntry, StepReply
from commandbus_process.postgres._reading import Row, entry_of

ROUNDS = 10
"""How often a write is tried whose obstacle has gone by the time that it is looked for."""


def stamp_to_try(values: Mapping[str, Any], stamps: Sequence[str], actual: Row | None) -> str | None:
    """Raise why an update changed nothing, or return which row it is to be tried with again.

    A row that is one of those that the object matches has come back by a rollback, and nobody else has written it. Any
    other row was written by somebody else.

    Args:
        values: The parameters of the update.
        stamps: The rows that the object matches, newest last; none if only its version is known.
        actual: What is stored.

    Raises:
        ProcessNotFoundError: Nothing is stored.
        InvalidInputError: The row has another process type.
        ConcurrentUpdateError: The row is none of those that the object matches.
    """
    key = values["key_domain"], values["key_process_id"]
    if actual is None:
        raise ProcessNotFoundError(*key)
    if values["key_process_type"] != actual["process_type"]:
        raise InvalidInputError("process_type", f"is {actual['process_type']!r} in its row, and stays that")
    if stamps:
        if actual["stamp"] in stamps:
            return str(actual["stamp"])
        raise ConcurrentUpdateError(*key, int(stamps[-1].split(" ", 1)[0]), actual["version"])
    expected = values["key_version"]
    if expected is not None and expected != actual["version"]:
        raise ConcurrentUpdateError(*key, expected, actual["version"])
    return None


def logging_error(
    domain: str, process_id: UUID, logged: Row | None, entry: ProcessAuditEntry, missing: str = "the rest of its step"
) -> ProcessNotFoundError | StepAlreadyLoggedError | None:
    """Return why an entry was not logged: no row, no process; `None` if nothing is in the way any more."""
    if logged is None:
        return ProcessNotFoundError(domain, process_id, can_come=True)
    if logged["command_id"] is None:
        return None
    return StepAlreadyLoggedError(domain, process_id, entry_of(domain, process_id, logged), entry, missing)


def reply_error(
    domain: str,
    process_id: UUID,
    recorded: Row | None,
    reply: ProcessAuditEntry | StepReply,
    missing: str = "the rest of its step",
) -> StepNotFoundError | ReplyConflictError | None:
    """Return why a reply was not recorded: no row, no step; `None` if nothing is in the way any more."""
    if recorded is None:
        return StepNotFoundError(domain, process_id, reply.command_id)
    if recorded["reply_outcome"] is None:
        return None
    return ReplyConflictError(domain, process_id, entry_of(domain, process_id, recorded), reply, missing)


def raise_first(errors: Iterable[ProcessError | None]) -> None:
    """Raise the first error, if there is one."""
    raise_all([error for error in errors if error is not None][:1])


def raise_all(errors: Iterable[ProcessError | None]) -> None:
    """Raise the first error, if there is one, with the others in `other_errors`."""
    found = [error for error in errors if error is not None]
    if not found:
        return
    first = found[0]
    first.other_errors = tuple(found[1:])
    if first.other_errors:
        first.args = (f"{first} (and {len(first.other_errors)} more, in .other_errors)",)
    try:
        raise first
    finally:
        del first, found  # else the error, its traceback and this frame would refer to each other
