"""Find out why a write changed nothing, and raise the matching error. All writers use this module."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from commandbus_process._checked_rows import Row, read_entry
from commandbus_process._columns import JSON, SAME_COMMAND, SAME_REPLY
from commandbus_process._stamps import version_in
from commandbus_process.errors import (
    ConcurrentUpdateError,
    InvalidInputError,
    NothingWrittenError,
    ProcessError,
    ProcessNotFoundError,
    ProcessRepositoryError,
    ReplyConflictError,
    StateTooNewError,
    StepAlreadyLoggedError,
    StepNotFoundError,
)
from commandbus_process.models import ProcessAuditEntry, StepReply

ResultT = TypeVar("ResultT")

_ROUNDS = 10
_REST = "the rest of its step"


def write_or_explain(
    write: Callable[[], ResultT | None],
    explain: Callable[[], ResultT | None],
    key: Callable[[], tuple[str, UUID]],
) -> ResultT:
    """Write and, if nothing was written, find out why.

    The two are separate statements. So the conflict may be gone before `explain` runs. Then both are repeated, up to 10
    times. After that, the cause must be something that `explain` cannot see.

    Args:
        write: Writes, and returns `None` if nothing was written.
        explain: Raises the reason why nothing was written, or returns the result that is stored already. `None`: there
            is no conflict any more.
        key: Returns the key of the process that could not be written, for the error.

    Raises:
        NothingWrittenError: Nothing is written, and there is no conflict.
    """
    for _ in range(_ROUNDS):
        done = write()
        if done is None:
            done = explain()
        if done is not None:
            return done
    raise NothingWrittenError(*key())


def is_redelivery(found: Sequence[Row | None]) -> bool:
    """Return whether a call was run before: its reply and all of its commands are stored already.

    A call without a reply and commands is never a redelivery.

    Args:
        found: What `WHY_NOT_LOGGED` and `WHY_NOT_RECORDED` found, for the reply and for each command of the call.
    """
    return bool(found) and all(row is not None and row["same"] for row in found)


def why_not_updated(
    values: Mapping[str, Any], stamps: Sequence[str], actual: Row | None
) -> ProcessRepositoryError | None:
    """Return why an update changed nothing; `None` if it can be repeated for the row that is there now.

    It can be repeated if the object matched this row before: a rollback has restored it, and nobody else has written.

    Args:
        values: The parameters of the update.
        stamps: The stamps of the rows that the object matches, newest last; empty if only its version is known.
        actual: What `WHY_NOT_WRITTEN` found.
    """
    key = values["key_domain"], values["key_process_id"]
    if actual is None:
        return ProcessNotFoundError(*key)
    if values["key_process_type"] != actual["process_type"]:
        return InvalidInputError("process_type", f"is {actual['process_type']!r} in its row, and cannot be changed")
    if stamps:
        expected, is_its_row = version_in(stamps[-1]), actual["stamp"] in stamps
    else:
        expected = values["key_version"]
        is_its_row = expected is None or expected == actual["version"]
    if not is_its_row:
        return ConcurrentUpdateError(*key, expected, actual["version"])
    found, known = actual["state_version"], values["key_state_version"]
    if found is not None and found > known:
        return StateTooNewError(*key, actual["process_type"], found, known)
    return None


def match_row_again(values: dict[str, Any], stamps: Sequence[str], actual: Row | None) -> None:
    """Raise the reason why an update changed nothing, or set its parameters to match the row that is there now.

    Raises:
        ProcessRepositoryError: See `why_not_updated`, which has the same arguments.
    """
    raise_first([why_not_updated(values, stamps, actual)])
    if actual is not None and stamps:
        values["key_stamp"] = actual["stamp"]


def why_not_logged(
    domain: str, process_id: UUID, logged: Row | None, entry: ProcessAuditEntry, missing: str = _REST
) -> ProcessNotFoundError | StepAlreadyLoggedError | None:
    """Return why an entry was not logged; `None` if there is no conflict any more.

    Args:
        domain: The process's domain.
        process_id: The process's id.
        logged: What `WHY_NOT_LOGGED` found.
        entry: The entry that was not logged.
        missing: For the error, if the same entry is stored: which part of the step is missing.
    """
    if logged is None:
        return ProcessNotFoundError(domain, process_id, can_come=True)
    if logged["command_id"] is None:
        return None
    recorded = read_entry(domain, process_id, logged)
    different: list[str] = []
    if not logged.get("same"):
        compared = SAME_COMMAND if entry.reply_outcome is None else (*SAME_COMMAND, *SAME_REPLY)
        different = [name for name in compared if _differ(getattr(recorded, name), getattr(entry, name))]
        # The database compares numbers exactly, and Python reads them as floats.
        different = different or [name for name in compared if name in JSON]
    return StepAlreadyLoggedError(domain, process_id, recorded, entry, different, missing)


def why_not_recorded(
    domain: str, process_id: UUID, recorded: Row | None, reply: ProcessAuditEntry | StepReply, missing: str = _REST
) -> StepNotFoundError | ReplyConflictError | None:
    """Return why a reply was not recorded; `None` if there is no conflict any more.

    Args:
        domain: The process's domain.
        process_id: The process's id.
        recorded: What `WHY_NOT_RECORDED` found.
        reply: The reply that was not recorded.
        missing: For the error, if the same reply is stored: which part of the step is missing.
    """
    if recorded is None:
        return StepNotFoundError(domain, process_id, reply.command_id)
    if recorded["reply_outcome"] is None:
        return None
    entry = read_entry(domain, process_id, recorded)
    return ReplyConflictError(domain, process_id, entry, reply, missing, is_same=recorded["same"])


def why_not_taken(
    key: tuple[str, UUID],
    recorded: Row | None,
    reply: ProcessAuditEntry | StepReply | None,
    logged: Sequence[Row | None],
    sent: Sequence[ProcessAuditEntry],
) -> list[ProcessRepositoryError | None]:
    """Return why the reply and the commands of a step were not written, the most telling error first.

    Args:
        key: The process's domain and id.
        recorded: What `WHY_NOT_RECORDED` found, if there is a reply.
        reply: The reply, if any.
        logged: What `WHY_NOT_LOGGED` found for each command.
        sent: The commands.
    """
    not_there = [entry for entry, row in zip(sent, logged, strict=True) if row is None or not row["same"]]
    missing = f"command {not_there[0].command_id}" if not_there else "the reply"
    of_commands = (why_not_logged(*key, row, entry, missing) for row, entry in zip(logged, sent, strict=True))
    # A command that is stored as another one comes before one that is stored as it was given.
    errors: list[ProcessRepositoryError | None]
    errors = sorted(of_commands, key=lambda error: getattr(error, "is_same", False))
    if reply is not None:
        errors.insert(0, why_not_recorded(*key, recorded, reply, missing))
    return errors


def _differ(stored: object, given: object) -> bool:
    """Whether two values differ as JSON. Python's `==` does not suffice: 1 equals True."""
    return json.dumps(stored, sort_keys=True, default=str) != json.dumps(given, sort_keys=True, default=str)


def raise_first(errors: Iterable[ProcessRepositoryError | None]) -> None:
    """Raise the first error, if there is one."""
    found = [error for error in errors if error is not None]
    if not found:
        return
    try:
        raise found[0]
    finally:
        del found, errors  # otherwise the error, its traceback and this frame would refer to each other


def raise_with_others(errors: Iterable[ProcessError | None]) -> None:
    """Raise the first error, if there is one. Its `other_errors` has the others."""
    found = [error for error in errors if error is not None]
    if len(found) > 1:
        found[0].other_errors = tuple(found[1:])
        found[0].args = (f"{found[0]} (and {len(found) - 1} more, in .other_errors)",)
    try:
        raise_first(found)
    finally:
        del found
