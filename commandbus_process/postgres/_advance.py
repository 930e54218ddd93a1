"""One step of a process manager, as one statement, and what to say where it could not be taken."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError

from commandbus_process._arguments import entry_values
from commandbus_process.errors import NothingWrittenError, ProcessError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, StepReply
from commandbus_process.postgres import _statements
from commandbus_process.postgres._reading import Written, first_row, read_written, stamps_of, written_from
from commandbus_process.postgres._refusals import ROUNDS, logging_error, raise_first, reply_error, stamp_to_try
from commandbus_process.postgres._transaction import is_in_autocommit, savepoint_open, sqlstate_of

_SEVERAL = 2  # or more

# By whether there is a reply, and how many commands there are to log.
_STATEMENTS: Mapping[tuple[bool, int], Executable] = {
    (False, 0): _statements.UPDATE,
    (True, 0): _statements.ADVANCE_ON_REPLY,
    (False, 1): _statements.ADVANCE_WITH_ONE_SENT,
    (True, 1): _statements.ADVANCE_ON_REPLY_WITH_ONE_SENT,
    (False, _SEVERAL): _statements.ADVANCE_WITH_SENT,
    (True, _SEVERAL): _statements.ADVANCE_ON_REPLY_WITH_SENT,
}

# What the statement fails with if it would write a part only, by a cast that fails on purpose.
_INVALID_TEXT_REPRESENTATION = "22P02"


@contextmanager
def _savepoint(connection: Connection) -> Generator[None]:
    with savepoint_open(connection), connection.begin_nested():
        yield


class Redelivered(NamedTuple):
    """The step was taken already.

    Attributes:
        row: What the database has set, if the row has what the object has; `None` if it has something else.
    """

    row: Written | None


class Step:
    """The reply, the commands that are sent, and the process after them.

    Args:
        process: As it is to be.
        reply: What came, if anything.
        sent: What goes out.
        values: The parameters of the statement.
    """

    def __init__(
        self,
        process: ProcessMetadata[Any],
        reply: ProcessAuditEntry | StepReply | None,
        sent: Sequence[ProcessAuditEntry],
        values: Mapping[str, Any],
    ) -> None:
        self._key = process.domain, process.process_id
        self._stamps = stamps_of(process)
        self._reply = reply
        self._sent = sent
        self._values = dict(values)

    def take(self, connection: Connection) -> Written | Redelivered:
        """Write everything or nothing."""
        for _ in range(ROUNDS):
            done = self._write(connection) or self._look_why(connection)
            if done is not None:
                return done
        raise NothingWrittenError(*self._key)

    def _write(self, connection: Connection) -> Written | None:
        statement = _STATEMENTS[self._reply is not None, min(len(self._sent), _SEVERAL)]
        # Of one command, all are logged or none. Of several, another transaction can log one while the statement runs;
        # then it fails, and only a savepoint keeps the caller's transaction alive.
        may_fail = len(self._sent) >= _SEVERAL
        needs_savepoint = may_fail and not is_in_autocommit(connection)
        try:
            with _savepoint(connection) if needs_savepoint else nullcontext():
                return read_written(connection.execute(statement, self._values))
        except DBAPIError as error:
            if not is_part_written(error):
                raise
            if may_fail:
                return None
            # Not another transaction: a trigger or a row policy. The caller's transaction is aborted, which keeps it
            # from committing a part.
            raise NothingWrittenError(*self._key) from error

    def _look_why(self, connection: Connection) -> Redelivered | None:
        """Return what a redelivery wrote; raise why nothing was written; return `None` if nothing is in the way."""
        actual = first_row(connection.execute(_statements.UPDATED_PROCESS, self._values))
        recorded = None
        if self._reply is not None:
            recorded = first_row(connection.execute(_statements.RECORDED_REPLY, self._values))
        logged = [first_row(connection.execute(_statements.LOGGED_STEP, self._logging(entry))) for entry in self._sent]
        parts = [*([recorded] if self._reply is not None else []), *logged]
        if actual is not None and parts and all(part is not None and part["same"] for part in parts):
            return Redelivered(written_from(actual["written"]) if actual["same"] else None)
        self._values["key_stamp"] = stamp_to_try(self._values, self._stamps, actual)
        not_there = [entry for entry, row in zip(self._sent, logged, strict=True) if row is None or not row["same"]]
        missing = f"command {not_there[0].command_id}" if not_there else "the reply"
        errors: list[ProcessError | None] = [
            logging_error(*self._key, each, entry, missing) for each, entry in zip(logged, self._sent, strict=True)
        ]
        if self._reply is not None:
            errors.insert(0, reply_error(*self._key, recorded, self._reply, missing))
        raise_first(errors)
        return None

    def _logging(self, entry: ProcessAuditEntry) -> dict[str, Any]:
        return {
            **self._values,
            **entry_values(entry, _statements.ENTRY),
            "key_command_id": entry.command_id,
        }


def is_part_written(error: DBAPIError) -> bool:
    """Whether a statement failed because it would have written a part only. A trigger's own error is not that."""
    message = getattr(getattr(error.orig, "diag", None), "message_primary", None) or ""
    return sqlstate_of(error) == _INVALID_TEXT_REPRESENTATION and _statements.PART_WRITTEN in message
