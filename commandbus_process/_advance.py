"""One step of a process manager, as one statement, and what to say where it could not be taken."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError

from commandbus_process import _statements
from commandbus_process._conflicts import ROUNDS, check_as_expected, logging_error, reply_error
from commandbus_process._input import entry_values
from commandbus_process._rows import Written, row_of, written_of
from commandbus_process._transaction import is_in_autocommit, sqlstate_of
from commandbus_process.errors import NothingWrittenError, ProcessError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata

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

# What the statement fails with where it would write a part only.
_INVALID_TEXT_REPRESENTATION = "22P02"


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
        reply: ProcessAuditEntry | None,
        sent: Sequence[ProcessAuditEntry],
        values: Mapping[str, Any],
    ) -> None:
        self._key = process.domain, process.process_id
        self._reply = reply
        self._sent = sent
        self._values = values

    def take(self, connection: Connection) -> Written:
        """Write everything or nothing, and return the process's new version and time."""
        for _ in range(ROUNDS):
            written = self._write(connection) or self._look_why(connection)
            if written is not None:
                return written
        raise NothingWrittenError(*self._key)

    def _write(self, connection: Connection) -> Written | None:
        statement = _STATEMENTS[self._reply is not None, min(len(self._sent), _SEVERAL)]
        # Of one command, all are logged or none. Of several, another transaction can log one while the statement runs;
        # then it fails, and only a savepoint keeps the caller's transaction alive.
        may_fail = len(self._sent) >= _SEVERAL
        needs_savepoint = may_fail and not is_in_autocommit(connection)
        try:
            with connection.begin_nested() if needs_savepoint else nullcontext():
                return written_of(connection.execute(statement, self._values))
        except DBAPIError as error:
            if sqlstate_of(error) != _INVALID_TEXT_REPRESENTATION:
                raise
            if may_fail:
                return None
            # Not another transaction: a trigger or a row policy. The caller's transaction is aborted, which keeps it
            # from committing a part.
            raise NothingWrittenError(*self._key) from error

    def _look_why(self, connection: Connection) -> Written | None:
        """Return what a redelivery wrote; raise why nothing was written; return `None` if nothing is in the way."""
        actual = row_of(connection.execute(_statements.UPDATED_PROCESS, self._values))
        recorded = None
        if self._reply is not None:
            recorded = row_of(connection.execute(_statements.RECORDED_REPLY, self._values))
        logged = [row_of(connection.execute(_statements.LOGGED_STEP, self._logging(entry))) for entry in self._sent]
        steps = [*([recorded] if self._reply is not None else []), *logged]
        are_there = all(step is not None and step["same"] for step in steps)
        if actual is not None and actual["version"] == self._values["key_version"] + 1 and actual["same"] and are_there:
            return Written(actual["updated_at"], actual["version"])
        check_as_expected(self._values, actual)
        errors: list[ProcessError | None] = [
            logging_error(*self._key, each, entry) for each, entry in zip(logged, self._sent, strict=True)
        ]
        if self._reply is not None:
            errors.insert(0, reply_error(*self._key, self._reply.command_id, recorded, self._reply))
        for error in errors:
            if error is not None:
                raise error
        return None

    def _logging(self, entry: ProcessAuditEntry) -> dict[str, Any]:
        return {
            **self._values,
            **entry_values(entry, _statements.ENTRY),
            "key_command_id": entry.command_id,
        }
