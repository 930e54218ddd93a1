"""The errors of this package.

Other errors of the driver and the server (connection lost, disk full) pass through as SQLAlchemy raises them.

If you passed a connection, its transaction can go on after an error of this package. The exceptions are those where
PostgreSQL itself aborts the transaction: `TransactionConflictError`, and the cases that the other classes name.
"""

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from commandbus_process.models import ProcessAuditEntry, StepReply


class ProcessRepositoryError(Exception):
    """Base of all errors of this package."""

    @property
    def retryable(self) -> bool:
        """Whether it can help to run the whole transaction again, beginning with its first read."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        # Python copies and pickles an exception by calling its class with `args`, the message. The constructors here
        # take facts instead, so they are not called.
        return _without_init, (type(self), self.args), self.__dict__


def _without_init(error_class: type[ProcessRepositoryError], args: tuple[Any, ...]) -> ProcessRepositoryError:
    return error_class.__new__(error_class, *args)


class InvalidInputError(ProcessRepositoryError, ValueError):
    """An argument cannot be used or stored. Nothing was written.

    It is raised before any SQL is sent, except in two cases. If `update` or `advance` finds another process type in the
    row, your transaction can go on. If a value exceeds a limit of the server, your transaction is aborted, unless a
    bulk method has rolled back to its savepoint.

    Attributes:
        field: The argument or field that is wrong (`domain`, `entry.command_data`, `state`, `state.token`).
        reason: What is wrong, and where in the value (`items.0.price`).
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class UnindexedFilterError(InvalidInputError):
    """No index serves the filter, so the database might read every process of the domain. Nothing was read.

    Attributes:
        conditions: The names of the conditions that no index serves, for example `("process_type",)`. `("trails",)`:
            the query reads the trails of all processes in the filter, and does not limit those that have ended.
    """

    def __init__(self, conditions: tuple[str, ...]) -> None:
        self.conditions = conditions
        unserved = " and ".join("a look into all trails" if each == "trails" else each for each in conditions)
        super().__init__(
            "filter",
            f"no index serves {unserved} among processes that have ended; add created_after, "
            "deadline_before or a business_key, leave the terminal statuses out, or pass allow_scan=True",
        )


class SchemaError(ProcessRepositoryError):
    """Base of the errors about the schema's revision.

    Attributes:
        schema: The schema that has the tables, or should have them; `None` if it is not known.
        found: The revision that the database is at; `None` if there are no tables, or it is not known.
        wanted: The revision that this version of the library needs.
    """

    def __init__(self, found: str | None, wanted: str, schema: str | None, message: str) -> None:
        self.found = found
        self.wanted = wanted
        self.schema = schema
        super().__init__(message)


class SchemaTooOldError(SchemaError):
    """The database lacks tables or columns that this version of the library needs. Nothing was written.

    Upgrade the schema. If a statement found it, on your connection, your transaction is aborted.

    Attributes:
        missing: What the server said is missing; `None` if the revision was compared.
    """

    def __init__(
        self, found: str | None, wanted: str, *, schema: str | None = None, missing: str | None = None
    ) -> None:
        self.missing = missing
        where = "the database" if schema is None else f"schema {schema!r}"
        what = f"is at revision {found}" if found is not None else "has no tables of commandbus_process"
        option = "" if schema in {None, "commandbus"} else f" --schema {shlex.quote(str(schema))}"
        super().__init__(
            found,
            wanted,
            schema,
            f"{where} {f'lacks what this version needs ({missing})' if missing else what}, and revision {wanted} is "
            f"needed; run: python -m commandbus_process.migrations upgrade{option}",
        )


class SchemaTooNewError(SchemaError):
    """The database is at a revision that does not work with this version of the library any more.

    Upgrade the library.
    """

    def __init__(self, found: str, wanted: str, *, schema: str | None = None) -> None:
        super().__init__(
            found,
            wanted,
            schema,
            f"the database is at revision {found}, which this version of commandbus_process does not know (it knows "
            f"{wanted}); upgrade the library",
        )


class ProcessError(ProcessRepositoryError):
    """Base of the errors about one process.

    Attributes:
        domain: The process's domain.
        process_id: The process's id within the domain.
        other_errors: The errors of other items, if a method for many items found several errors.
    """

    other_errors: "tuple[ProcessError, ...]" = ()

    def __init__(self, domain: str, process_id: UUID, message: str) -> None:
        self.domain = domain
        self.process_id = process_id
        super().__init__(f"process {process_id} of domain {domain!r}: {message}")


class NothingWrittenError(ProcessError):
    """Nothing was written, and the library found no reason for it.

    The usual cause is a trigger that returns NULL, or a row-level security policy that hides the row. If only a part of
    `save` or `advance` was swallowed, its statement fails, so you cannot commit the other part: your transaction is
    aborted, or rolled back to a savepoint.
    """

    def __init__(self, domain: str, process_id: UUID) -> None:
        super().__init__(
            domain,
            process_id,
            "the server wrote nothing and reported no conflict; look for a trigger or a row-level security policy",
        )


class ProcessAlreadyExistsError(ProcessError):
    """The domain already has a process with this id. The stored process is unchanged."""

    def __init__(self, domain: str, process_id: UUID) -> None:
        super().__init__(domain, process_id, "exists already; use update() to change it")


class ProcessNotFoundError(ProcessError, LookupError):
    """The process does not exist, or the transaction that saves it is not committed yet. Nothing was written.

    Attributes:
        can_come: Whether the process may appear soon, because the transaction that saves it may not be committed yet.
    """

    def __init__(self, domain: str, process_id: UUID, *, can_come: bool = False) -> None:
        self.can_come = can_come
        what = "does not exist, or is not committed yet" if can_come else "does not exist"
        super().__init__(domain, process_id, f"{what}; save() it first, or check the domain and the id")

    @property
    def retryable(self) -> bool:
        """True for `log_step` and `log_many`: the transaction that saves the process may commit in a moment."""
        return self.can_come


class ProcessNotEndedError(ProcessError):
    """The process has not ended, so it cannot be erased. Nothing was written.

    Attributes:
        status: The status that is stored.
    """

    def __init__(self, domain: str, process_id: UUID, status: str) -> None:
        self.status = status
        super().__init__(domain, process_id, f"has not ended: its status is {status}; end it first")


class ConcurrentUpdateError(ProcessError):
    """Another transaction changed the process, or one of its steps, since this one read it. Nothing was written.

    If `actual_version` is a number, your transaction can go on. If it is `None`, PostgreSQL found the conflict
    (SQLSTATE 40001, under REPEATABLE READ or SERIALIZABLE) and aborted the transaction. Roll it back, and run it again,
    beginning with its first read.

    Attributes:
        expected_version: The version of your object; `None` if the call did not compare versions.
        actual_version: The version of the row; `None` if PostgreSQL found the conflict.
    """

    def __init__(
        self, domain: str, process_id: UUID, expected_version: int | None = None, actual_version: int | None = None
    ) -> None:
        self.expected_version = expected_version
        self.actual_version = actual_version
        if actual_version is None:
            message = (
                "was changed by another transaction since this one began, and PostgreSQL aborted this one; "
                "roll it back and run it again, beginning with its first read"
            )
        else:
            message = (
                f"does not match its row any more (the object is at version {expected_version}, the row at "
                f"{actual_version}): somebody else changed the row since this object was read or written, the "
                "object's own write was rolled back, or advance() returned False for it; read it again and repeat your "
                "change"
            )
        super().__init__(domain, process_id, message)

    @property
    def retryable(self) -> bool:
        """True: read the process again, and repeat the change."""
        return True


class ProcessLockedError(ProcessRepositoryError):
    """Another transaction holds the process, or one of several. Nothing was written.

    After `for_update="nowait"` and after the bulk methods, your transaction can go on. In all other cases a
    `lock_timeout` ended the wait (SQLSTATE 55P03), and your transaction is aborted.

    Attributes:
        domain: The process's domain; `None` if the call was about several processes.
        process_id: The process's id; `None` if the call was about several processes.
    """

    def __init__(self, domain: str | None = None, process_id: UUID | None = None) -> None:
        self.domain = domain
        self.process_id = process_id
        which = "a process" if process_id is None else f"process {process_id} of domain {domain!r}:"
        super().__init__(f"{which} is locked by another transaction; try again later")

    @property
    def retryable(self) -> bool:
        """True: the other transaction will end."""
        return True


class TransactionConflictError(ProcessRepositoryError):
    """PostgreSQL aborted the transaction because of a concurrent one. Nothing was written.

    Roll it back, and run all of it again. That is safe, and can succeed.

    Attributes:
        sqlstate: The server's code: 40001 (serialization failure) or 40P01 (deadlock).
    """

    def __init__(self, sqlstate: str, what: str = "conflicted with a concurrent one") -> None:
        self.sqlstate = sqlstate
        super().__init__(
            f"the transaction {what}, and PostgreSQL aborted it ({sqlstate}); "
            "nothing was written; roll it back and run the whole of it again"
        )

    @property
    def retryable(self) -> bool:
        """True: by then, the other transaction has probably ended."""
        return True


class DeadlockError(TransactionConflictError):
    """The transaction and another one waited for each other, and PostgreSQL aborted this one (SQLSTATE 40P01)."""

    def __init__(self) -> None:
        super().__init__("40P01", "was in a deadlock with another one")


class RecoveryConflictError(TransactionConflictError):
    """A standby cancelled a read that was in the way of what its primary had sent (SQLSTATE 40001 or 40P01).

    The primary removed rows that the read still needed, or locked their table. Nothing is wrong with the process, and
    no other transaction changed it. The standby may end the session, too, if your transaction was idle meanwhile.
    """

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate, "was in the way of the recovery of a standby")


class ReadOnlyServerError(ProcessRepositoryError):
    """The server takes no writes and no locks: it is a standby, or the transaction is read-only. Nothing was written.

    The server's code is 25006. Your transaction is aborted, or rolled back to a savepoint after the bulk methods.
    Without `conn`, and in `run_in_transaction`, a connection to such a server is closed and not given back to the pool.
    """

    def __init__(self) -> None:
        super().__init__(
            "the server is a standby, or the transaction is read-only; nothing was written; connect to the primary "
            "(target_session_attrs=read-write), and run the whole transaction again on a new connection"
        )

    @property
    def retryable(self) -> bool:
        """True: after a failover, a new connection leads to the new primary."""
        return True


class StepError(ProcessError):
    """Base of the errors about one step of a process.

    Attributes:
        command_id: The id of the step's command.
    """

    def __init__(self, domain: str, process_id: UUID, command_id: UUID, message: str) -> None:
        self.command_id = command_id
        super().__init__(domain, process_id, f"command {command_id} {message}")


class StepNotFoundError(StepError, LookupError):
    """The process has no step with this command id, or it is not committed yet. Nothing was written."""

    def __init__(self, domain: str, process_id: UUID, command_id: UUID) -> None:
        super().__init__(
            domain, process_id, command_id, "is not logged, or not committed yet; log a command when you send it"
        )

    @property
    def retryable(self) -> bool:
        """True: a reply can arrive before the transaction that logs its command has committed."""
        return True


class StepAlreadyLoggedError(StepError):
    """An entry is already logged under this command id. It is unchanged, and nothing was written.

    Attributes:
        recorded: The entry that is stored.
        given: The entry that was rejected.
        different: The fields in which the two differ. Times are not compared.
        is_same: Whether the two are the same. Then another part of the step is missing.
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
            "give each command its own id, and record a reply with update_step_reply()"
            if self.different
            else f"is logged already, but {missing} is not there: this call does not repeat the step that logged it",
        )


class ReplyConflictError(StepError):
    """A reply to this command is already recorded. It is unchanged, and nothing was written.

    Attributes:
        recorded: The entry that is stored, with the first reply.
        given: The reply that was rejected.
        is_same: Whether the two have the same outcome and data. Then a command of the step is missing.
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
                f"this one is the same, but {missing} is not logged: when you repeat a step, give its commands the ids "
                "that they had the first time"
                if is_same
                else f"a second one with {what} is a conflict; a person or a policy has to resolve it"
            ),
        )


class StoredDataError(ProcessError, ValueError):
    """A stored row does not fit this version of the library, or its state does not fit the state type.

    Attributes:
        reason: What does not fit. It quotes no stored value.
    """

    def __init__(self, domain: str, process_id: UUID, reason: str, *, what: str = "the stored row") -> None:
        self.reason = reason
        super().__init__(domain, process_id, f"{what} cannot be read: {reason}")


class StateTooNewError(StoredDataError):
    """A stored state has a newer version than this program knows. It was neither read nor overwritten.

    A newer version of the program has written it, for example while a deployment rolls. Let that one handle the
    process. A repository without `StateVersions` knows version 1 only.

    Attributes:
        process_type: The process's type.
        found: The version of the stored state.
        known: The newest version that the repository knows.
    """

    def __init__(self, domain: str, process_id: UUID, process_type: str, found: int, known: int) -> None:
        self.process_type = process_type
        self.found = found
        self.known = known
        super().__init__(
            domain,
            process_id,
            f"it is at version {found}, and this program knows no version above {known}; it was not overwritten; let a "
            f"newer version of the program handle it, or give this one a downcaster from version {found}",
            what=f"its state (process type {process_type!r})",
        )


class StoredStateError(StoredDataError):
    """A stored state does not fit its type.

    Attributes:
        process_type: The process's type.
        state_type: The name of the type that the state should have.
    """

    def __init__(self, domain: str, process_id: UUID, process_type: str, state_type: str, reason: str) -> None:
        self.process_type = process_type
        self.state_type = state_type
        super().__init__(domain, process_id, reason, what=f"its state (process type {process_type!r}) as {state_type}")
