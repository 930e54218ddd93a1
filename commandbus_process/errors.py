"""Everything that the repository raises of its own.

Errors of the driver and the server that are none of these (connection lost, disk full) pass through as SQLAlchemy
raises them. None of these errors aborts the transaction of a connection that the caller passed in.
"""

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from commandbus_process.models import ProcessAuditEntry


class ProcessRepositoryError(Exception):
    """Base of all errors of this package."""


class InvalidInputError(ProcessRepositoryError, ValueError):
    """An argument cannot be stored. Raised before any SQL.

    Attributes:
        field: The argument or field at fault, as a path (`state.items.0.price`).
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class ProcessError(ProcessRepositoryError):
    """Base of the errors about one process.

    Attributes:
        domain: The process's domain.
        process_id: The process's id within the domain.
    """

    def __init__(self, domain: str, process_id: UUID, message: str) -> None:
        self.domain = domain
        self.process_id = process_id
        super().__init__(f"process {process_id} of domain {domain!r}: {message}")


class ProcessAlreadyExistsError(ProcessError):
    """`save` of a process whose (domain, process_id) is taken. The stored process is untouched."""

    def __init__(self, domain: str, process_id: UUID) -> None:
        super().__init__(domain, process_id, "exists already; use update() to change it")


class ProcessNotFoundError(ProcessError, LookupError):
    """No such process. Nothing was written."""

    def __init__(self, domain: str, process_id: UUID) -> None:
        super().__init__(domain, process_id, "does not exist; save() it first, or check the domain and the id")


class ConcurrentUpdateError(ProcessError):
    """The process was changed since it was read. Nothing was written.

    Attributes:
        expected_version: The version that the caller's object carries.
        actual_version: The version that the row has.
    """

    def __init__(self, domain: str, process_id: UUID, expected_version: int, actual_version: int) -> None:
        self.expected_version = expected_version
        self.actual_version = actual_version
        super().__init__(
            domain,
            process_id,
            f"is at version {actual_version}, not {expected_version}: somebody else changed it since it was read; "
            "read it again and apply the change to what is there now",
        )


class StepError(ProcessError):
    """Base of the errors about one step of a process.

    Attributes:
        command_id: The id of the step's command.
    """

    def __init__(self, domain: str, process_id: UUID, command_id: UUID, message: str) -> None:
        self.command_id = command_id
        super().__init__(domain, process_id, f"command {command_id} {message}")


class StepNotFoundError(StepError, LookupError):
    """A reply to a command that the process never logged. Nothing was written."""

    def __init__(self, domain: str, process_id: UUID, command_id: UUID) -> None:
        super().__init__(domain, process_id, command_id, "was never logged; log_step() it when it is sent")


class StepAlreadyLoggedError(StepError):
    """Another entry is logged under this command id. It is untouched.

    Attributes:
        recorded: The entry that is stored.
        given: The entry that was refused.
    """

    def __init__(
        self, domain: str, process_id: UUID, recorded: "ProcessAuditEntry", given: "ProcessAuditEntry"
    ) -> None:
        self.recorded = recorded
        self.given = given
        super().__init__(
            domain,
            process_id,
            recorded.command_id,
            f"is logged already, as another entry (step {recorded.step_name!r}, type {recorded.command_type!r}); "
            f"give the command of step {given.step_name!r} an id of its own",
        )


class ReplyConflictError(StepError):
    """Another reply to this command is recorded. It is untouched.

    Attributes:
        recorded: The entry that is stored, with the first reply.
        given: The entry whose reply was refused.
    """

    def __init__(
        self, domain: str, process_id: UUID, recorded: "ProcessAuditEntry", given: "ProcessAuditEntry"
    ) -> None:
        self.recorded = recorded
        self.given = given
        what = "other data" if recorded.reply_outcome == given.reply_outcome else f"outcome {given.reply_outcome}"
        super().__init__(
            domain,
            process_id,
            recorded.command_id,
            f"has a reply already, {recorded.reply_outcome} at {recorded.received_at}; "
            f"a second one with {what} is a conflict for a person or a policy to resolve",
        )


class StoredDataError(ProcessError, ValueError):
    """A stored row does not fit this version of the software, or the state type that it was given.

    Attributes:
        reason: What does not fit, without the stored values.
    """

    def __init__(self, domain: str, process_id: UUID, reason: str, *, what: str = "the stored row") -> None:
        self.reason = reason
        super().__init__(domain, process_id, f"{what} cannot be read: {reason}")


class StoredStateError(StoredDataError):
    """A stored state does not fit its type.

    Attributes:
        process_type: The process's type.
        state_type: The name of the type that the state was to become.
    """

    def __init__(self, domain: str, process_id: UUID, process_type: str, state_type: str, reason: str) -> None:
        self.process_type = process_type
        self.state_type = state_type
        super().__init__(domain, process_id, reason, what=f"its state (process type {process_type!r}) as {state_type}")
