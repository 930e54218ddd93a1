"""Everything that the repository raises of its own.

Errors of the driver and the server that are none of these (connection lost, disk full) pass through as SQLAlchemy
raises them. After these errors the transaction of a connection that the caller passed in is alive, except where
PostgreSQL itself aborts it: `TransactionConflictError`, and the cases that `ConcurrentUpdateError` and
`ProcessLockedError` name.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from commandbus_process.models import ProcessAuditEntry, StepReply


class ProcessRepositoryError(Exception):
    """Base of all errors of this package."""

    @property
    def retryable(self) -> bool:
        """Whether it can help to run the whole transaction again, from its first read on."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is copied and pickled by calling its class with `args`, the message; these take facts instead.
        return _without_init, (type(self), self.args), self.__dict__


def _without_init(error_class: type[ProcessRepositoryError], args: tuple[Any, ...]) -> ProcessRepositoryError:
    return error_class.__new__(error_class, *args)


class InvalidInputError(ProcessRepositoryError, ValueError):
    """An argument cannot be stored. Raised before any SQL.

    Attributes:
        field: The argument or field at fault (`domain`, `entry.command_data`, `state`, `state.token`).
        reason: What is wrong with it, and where in it (`items.0.price`).
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
        other_errors: The errors of other items, where a method was given many and found several at fault.
    """

    other_errors: "tuple[ProcessError, ...]" = ()

    def __init__(self, domain: str, process_id: UUID, message: str) -> None:
        self.domain = domain
        self.process_id = process_id
        super().__init__(f"process {process_id} of domain {domain!r}: {message}")


class NothingWrittenError(ProcessError):
    """The server reports no error and wrote nothing, though nothing is in the way.

    A trigger that returns NULL does that, or a row-level security policy that hides the row.
    """

    def __init__(self, domain: str, process_id: UUID) -> None:
        super().__init__(
            domain, process_id, "nothing was written, and nothing is in the way: look for a trigger or a row policy"
        )


class ProcessAlreadyExistsError(ProcessError):
    """`save` of a process whose (domain, process_id) is taken. The stored process is untouched."""

    def __init__(self, domain: str, process_id: UUID) -> None:
        super().__init__(domain, process_id, "exists already; use update() to change it")


class ProcessNotFoundError(ProcessError, LookupError):
    """No such process, or the transaction that saves it is not committed yet. Nothing was written.

    Attributes:
        can_come: Whether it was looked for by somebody who may have been faster than the transaction that saves it.
    """

    def __init__(self, domain: str, process_id: UUID, *, can_come: bool = False) -> None:
        self.can_come = can_come
        what = "does not exist, or is not committed yet" if can_come else "does not exist"
        super().__init__(domain, process_id, f"{what}; save() it first, or check the domain and the id")

    @property
    def retryable(self) -> bool:
        """True for `log_step`: the transaction that saves the process may be committed in a moment."""
        return self.can_come


class ConcurrentUpdateError(ProcessError):
    """The process, or one of its steps, was changed by another transaction since this one looked. Nothing was written.

    The caller's transaction is alive where `actual_version` tells what the row has now. Where it is `None`, PostgreSQL
    found the conflict (SQLSTATE 40001, under REPEATABLE READ and SERIALIZABLE) and aborted the transaction: roll it
    back, and run it again from its first read on.

    Attributes:
        expected_version: The version that the caller's object carries; `None` if the call was about no version.
        actual_version: The version that the row has; `None` if PostgreSQL found the conflict, and did not say.
    """

    def __init__(
        self, domain: str, process_id: UUID, expected_version: int | None = None, actual_version: int | None = None
    ) -> None:
        self.expected_version = expected_version
        self.actual_version = actual_version
        if actual_version is None:
            message = (
                "was changed by another transaction since this one began, and PostgreSQL aborted this one; "
                "roll it back and run it again from its first read on"
            )
        else:
            message = (
                f"does not match its row any more (the object is at version {expected_version}, the row at "
                f"{actual_version}): somebody else changed the row since this object was read or written, or what this "
                "object wrote was rolled back; read it again and apply the change to what is there now"
            )
        super().__init__(domain, process_id, message)

    @property
    def retryable(self) -> bool:
        """True: what is read anew can be changed."""
        return True


class ProcessLockedError(ProcessRepositoryError):
    """Another transaction holds the process, or one of several. Nothing was written.

    The caller's transaction is alive after `for_update="nowait"` and after the bulk methods. Otherwise a `lock_timeout`
    that ended the wait (SQLSTATE 55P03) has aborted it.

    Attributes:
        domain: The process's domain; `None` if the call was about several processes.
        process_id: The process's id; `None` if the call was about several processes.
    """

    def __init__(self, domain: str | None = None, process_id: UUID | None = None) -> None:
        self.domain = domain
        self.process_id = process_id
        which = "a process" if process_id is None else f"process {process_id} of domain {domain!r}:"
        super().__init__(f"{which} is locked by another transaction; try again when that has ended")

    @property
    def retryable(self) -> bool:
        """True: the other transaction will end."""
        return True


class TransactionConflictError(ProcessRepositoryError):
    """PostgreSQL aborted the transaction, because it cannot go on together with another one. Nothing was written.

    Roll it back, and run it again from its first statement on: that is safe, and can succeed.

    Attributes:
        sqlstate: The server's code: 40001 (serialization failure) or 40P01 (deadlock).
    """

    def __init__(self, sqlstate: str, what: str = "could not be serialized with another one") -> None:
        self.sqlstate = sqlstate
        super().__init__(
            f"the transaction {what} and was aborted by PostgreSQL ({sqlstate}); "
            "roll it back and run the whole of it again: nothing of it was kept"
        )

    @property
    def retryable(self) -> bool:
        """True: the other transaction will have ended."""
        return True


class DeadlockError(TransactionConflictError):
    """The transaction and another one waited for each other, and PostgreSQL aborted this one (SQLSTATE 40P01)."""

    def __init__(self) -> None:
        super().__init__("40P01", "waited for another one that waited for it")


class StepError(ProcessError):
    """Base of the errors about one step of a process.

    Attributes:
        command_id: The id of the step's command.
    """

    def __init__(self, domain: str, process_id: UUID, command_id: UUID, message: str) -> None:
        self.command_id = command_id
        super().__init__(domain, process_id, f"command {command_id} {message}")


class StepNotFoundError(StepError, LookupError):
    """A reply to a command that the process has not logged, or not committed yet. Nothing was written."""

    def __init__(self, domain: str, process_id: UUID, command_id: UUID) -> None:
        super().__init__(
            domain, process_id, command_id, "is not logged, or not committed yet; log_step() it when it is sent"
        )

    @property
    def retryable(self) -> bool:
        """True: a reply can overtake the transaction that logs its command."""
        return True


class StepAlreadyLoggedError(StepError):
    """An entry is logged under this command id. It is untouched, and nothing was written.

    Attributes:
        recorded: The entry that is stored.
        given: The entry that was refused.
        different: The fields in which they differ. Times are not compared.
        is_same: Whether they are the same. Then the rest of the step is what is missing.
    """

    def __init__(
        self,
        domain: str,
        process_id: UUID,
        recorded: "ProcessAuditEntry",
        given: "ProcessAuditEntry",
        different: Iterable[str],
        missing: str = "the rest of its step",
    ) -> None:
        self.recorded = recorded
        self.given = given
        self.different = tuple(different)
        self.is_same = not self.different
        super().__init__(
            domain,
            process_id,
            recorded.command_id,
            f"is logged already, as another entry (they differ in {', '.join(self.different)}); "
            "another command needs an id of its own, and a reply is recorded by update_step_reply()"
            if self.different
            else f"is logged already, but {missing} is not there: this is no redelivery of the step that logged it",
        )


class ReplyConflictError(StepError):
    """A reply to this command is recorded. It is untouched, and nothing was written.

    Attributes:
        recorded: The entry that is stored, with the first reply.
        given: The reply that was refused.
        is_same: Whether they have the same outcome and data. Then the commands of the step are what is missing.
    """

    def __init__(
        self,
        domain: str,
        process_id: UUID,
        recorded: "ProcessAuditEntry",
        given: "ProcessAuditEntry | StepReply",
        missing: str = "the rest of its step",
        *,
        is_same: bool = False,
    ) -> None:
        self.recorded = recorded
        self.given = given
        self.is_same = is_same
        outcome = getattr(given, "outcome", None) or getattr(given, "reply_outcome", None)
        what = "other data" if recorded.reply_outcome == outcome else f"outcome {outcome}"
        super().__init__(
            domain,
            process_id,
            recorded.command_id,
            f"has a reply already, {recorded.reply_outcome} at {recorded.received_at}; "
            + (
                f"this one is the same, but {missing} is not logged: a step that is decided again must give its "
                "commands the ids that they had the first time"
                if is_same
                else f"a second one with {what} is a conflict for a person or a policy to resolve"
            ),
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
