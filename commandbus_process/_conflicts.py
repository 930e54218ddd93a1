"""Why a write changed nothing: from what is stored to the error that tells."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from commandbus_process._rows import Row, entry_of
from commandbus_process.errors import (
    ConcurrentUpdateError,
    InvalidInputError,
    ProcessError,
    ProcessNotFoundError,
    ReplyConflictError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from commandbus_process.models import ProcessAuditEntry

ErrorT = TypeVar("ErrorT", bound=ProcessError)

ROUNDS = 10
"""How often a write is tried whose obstacle has gone by the time that it is looked for."""


def check_as_expected(values: Mapping[str, Any], actual: Row | None) -> None:
    """Tell why an update changed nothing, if the process tells it.

    Args:
        values: The parameters of the update.
        actual: What is stored.

    Raises:
        ProcessNotFoundError: Nothing is.
        ConcurrentUpdateError: The version is another one.
        InvalidInputError: The type is another one, where states depend on it.
    """
    key = values["key_domain"], values["key_process_id"]
    if actual is None:
        raise ProcessNotFoundError(*key)
    expected, process_type = values["key_version"], values["key_process_type"]
    if expected is not None and expected != actual["version"]:
        raise ConcurrentUpdateError(*key, expected, actual["version"])
    if process_type is not None and process_type != actual["process_type"]:
        raise InvalidInputError("process_type", f"is {actual['process_type']!r} in its row, and stays that")


def logging_error(
    domain: str, process_id: UUID, logged: Row | None, entry: ProcessAuditEntry
) -> ProcessNotFoundError | StepAlreadyLoggedError | None:
    """Return why an entry was not logged: no row, no process; `None` where nothing is in the way any more."""
    if logged is None:
        return ProcessNotFoundError(domain, process_id)
    if logged["command_id"] is None:
        return None
    return StepAlreadyLoggedError(domain, process_id, entry_of(domain, process_id, logged), entry)


def reply_error(
    domain: str, process_id: UUID, command_id: UUID, recorded: Row | None, entry: ProcessAuditEntry
) -> StepNotFoundError | ReplyConflictError | None:
    """Return why a reply was not recorded: no row, no step; `None` where nothing is in the way any more."""
    if recorded is None:
        return StepNotFoundError(domain, process_id, command_id)
    if recorded["reply_outcome"] is None:
        return None
    return ReplyConflictError(domain, process_id, entry_of(domain, process_id, recorded), entry)


def raise_all(errors: Sequence[ErrorT]) -> None:
    """Raise the first error, if there is one, and have it tell of the others."""
    if not errors:
        return
    first, *others = errors
    first.others = tuple(others)
    if others:
        first.args = (f"{first} (and {len(others)} more, in .others)",)
    raise first
