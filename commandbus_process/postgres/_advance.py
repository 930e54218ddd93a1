"""Steps of a process manager: save a process with its first commands, and advance it. Statements and refusals."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    Integer,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from commandbus_process._arguments import entry_columns
from commandbus_process._columns import COMMAND_KEY, ENTRY, LOGGED, PROCESS_KEY, REPLY, SAME_PROCESS
from commandbus_process.errors import NothingWrittenError, ProcessRepositoryError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, StepReply
from commandbus_process.postgres._expressions import (
    OF_PROCESS,
    ONE,
    PART_WRITTEN,
    WRITTEN,
    equals_given,
    key_parameter,
    names_equal,
    parameter,
    rows_parameter,
    whole_or_failed,
)
from commandbus_process.postgres._parameters import step_key
from commandbus_process.postgres._reading import Row, first_row
from commandbus_process.postgres._refusals import (
    is_redelivery,
    match_row_again,
    raise_first,
    why_not_logged,
    why_not_recorded,
    write_or_explain,
)
from commandbus_process.postgres._stamps import Written, matching_stamps, read_written, written_from
from commandbus_process.postgres._statements import (
    MATCHES_OBJECT,
    SAVE,
    UPDATE,
    WHY_NOT_LOGGED,
    WHY_NOT_RECORDED,
    WHY_NOT_WRITTEN,
    update_process,
)
from commandbus_process.postgres._transaction import get_sqlstate, is_in_autocommit, savepoint_open
from commandbus_process.tables import process, process_audit

# The commands that are sent, beside the parameters of the process and the reply. One command, the usual number, travels
# as parameters: the server takes a sixth less time than with JSON. Several are rows.
_SENT_ROWS = rows_parameter(process_audit, ENTRY, "sent")


def _sent(column: Column[Any]) -> ColumnElement[Any]:
    return parameter(column, "sent_")


def _steps_to_log(held: CTE, *, many: bool) -> Select[Any]:
    key = (held.c[name] for name in PROCESS_KEY)
    if not many:
        return select(*key, *(_sent(process_audit.c[name]) for name in ENTRY))
    columns = (_SENT_ROWS.c[name] for name in ENTRY)
    return select(*key, *columns).join_from(held, _SENT_ROWS, true()).order_by(_SENT_ROWS.c.position)


def _count(written: CTE) -> ColumnElement[int]:
    return select(func.pg_catalog.count(literal_column("*"))).select_from(written).scalar_subquery()


def _advance(*, with_reply: bool, sent: Literal["none", "one", "many"]) -> Select[Any]:
    """One step of a process manager in one statement: the next commands, the reply, the process, or none of them.

    `held` checks and locks all preconditions: the row that the object matches, the step that has no reply yet, and that
    none of several commands is logged. (A single one is logged or is not.) All that is written is read from `held`. The
    process is locked before the step: every writer keeps this order, so that no two wait for each other.

    One thing can still happen meanwhile: another transaction logs one of the commands. So the commands are logged
    first, the reply is recorded only if all of them were, and the process is updated only then. If a part was written
    and the process was not, the statement fails, which takes back the part.
    """
    step = process_audit.alias("step")
    is_replied = process_audit.c.command_id == key_parameter(process_audit.c.command_id)

    held_from: FromClause = process
    locked: list[FromClause] = [process]
    conditions = [MATCHES_OBJECT]
    if with_reply:
        held_from = process.join(step, names_equal(step, process, PROCESS_KEY))
        locked.append(step)
        conditions += [step.c.command_id == key_parameter(process_audit.c.command_id), step.c.reply_outcome.is_(None)]
    if sent == "many":
        # A scalar subquery is looked up by key for each command; an EXISTS would become a join with the whole trail.
        is_command = and_(OF_PROCESS, process_audit.c.command_id == _SENT_ROWS.c.command_id)
        logged_before = select(process_audit.c.id).where(is_command).correlate(_SENT_ROWS).scalar_subquery()
        conditions.append(~exists(select(ONE).select_from(_SENT_ROWS).where(logged_before.is_not(None))))
    held = (
        select(*process.primary_key)
        .select_from(held_from)
        .where(*conditions)
        .with_for_update(key_share=True, of=locked)
        .cte("held")
    )
    # Each part reads the key from the one before it, so it is written only if that one was. (Counting the rows of each
    # part took the server 8 % longer.)
    parts: list[CTE] = [held]
    all_logged: list[ColumnElement[bool]] = []
    if sent != "none":
        logged = (
            insert(process_audit)
            .from_select(LOGGED, _steps_to_log(held, many=sent == "many"))
            .on_conflict_do_nothing(index_elements=COMMAND_KEY)
            .returning(*(process_audit.c[name] for name in PROCESS_KEY))
            .cte("logged")
        )
        parts.append(logged)
        if sent == "many":
            all_logged = [_count(logged) == bindparam("sent_count", type_=Integer())]
    before = held if sent == "many" else parts[-1]  # several commands are several rows
    if with_reply:
        before = (
            update(process_audit)
            .where(names_equal(process_audit, before, PROCESS_KEY), is_replied, *all_logged)
            .values({name: parameter(process_audit.c[name]) for name in REPLY})
            .returning(*(process_audit.c[name] for name in PROCESS_KEY))
            .cte("replied")
        )
        parts.append(before)
        all_logged = []
    changed = update_process(and_(names_equal(process, before, PROCESS_KEY), *all_logged)).cte("changed")
    one_row = select(ONE).subquery("one_row")
    return (
        select(changed.c.written)
        .select_from(one_row.outerjoin(changed, true()))
        .where(whole_or_failed(changed.c.written.is_not(None), parts[1]))
    )


def _save_with(*, many: bool) -> Select[Any]:
    """A new process and its first commands in one statement."""
    saved = SAVE.returning(*process.primary_key).cte("saved")
    logged = (
        insert(process_audit)
        .from_select(LOGGED, _steps_to_log(saved, many=many))
        .returning(process_audit.c.id)
        .cte("logged")
    )
    wanted = bindparam("sent_count", type_=Integer()) if many else ONE
    return select(saved.c.written).where(whole_or_failed(_count(logged) == wanted, saved))


# By whether there is a reply, and how many commands there are to log.
ADVANCE_ON_REPLY = _advance(with_reply=True, sent="none")
ADVANCE_WITH_ONE_SENT = _advance(with_reply=False, sent="one")
ADVANCE_WITH_SENT = _advance(with_reply=False, sent="many")
ADVANCE_ON_REPLY_WITH_ONE_SENT = _advance(with_reply=True, sent="one")
ADVANCE_ON_REPLY_WITH_SENT = _advance(with_reply=True, sent="many")
SAVE_WITH_ONE_SENT = _save_with(many=False)
SAVE_WITH_SENT = _save_with(many=True)

# Why a step was not taken, as far as the process says it: no row, no process; else what the row has, and whether it has
# what the step was to write.
WHY_NOT_ADVANCED = WHY_NOT_WRITTEN.add_columns(
    WRITTEN.label("written"), and_(*(equals_given(process.c[name]) for name in SAME_PROCESS)).label("same")
)

_SEVERAL = 2  # or more

_STATEMENTS: Mapping[tuple[bool, int], Executable] = {
    (False, 0): UPDATE,
    (True, 0): ADVANCE_ON_REPLY,
    (False, 1): ADVANCE_WITH_ONE_SENT,
    (True, 1): ADVANCE_ON_REPLY_WITH_ONE_SENT,
    (False, _SEVERAL): ADVANCE_WITH_SENT,
    (True, _SEVERAL): ADVANCE_ON_REPLY_WITH_SENT,
}


def save_statement(sent: Sequence[ProcessAuditEntry]) -> Executable:
    """Return the statement that saves a process with its first commands."""
    if not sent:
        return SAVE
    return SAVE_WITH_ONE_SENT if len(sent) == 1 else SAVE_WITH_SENT


_INVALID_TEXT_REPRESENTATION = "22P02"


def is_part_written(error: DBAPIError) -> bool:
    """Whether a statement failed because it would have written a part only. A trigger's own error is not that."""
    message = getattr(getattr(error.orig, "diag", None), "message_primary", None) or ""
    return get_sqlstate(error) == _INVALID_TEXT_REPRESENTATION and PART_WRITTEN in message


@contextmanager
def _savepoint(connection: Connection) -> Generator[None]:
    with savepoint_open(connection), connection.begin_nested():
        yield


class Taken(NamedTuple):
    """The step was taken.

    Attributes:
        is_new: Whether this call took it. Otherwise it is a redelivery.
        row: What the database has set; `None` if the row has something else than the object.
    """

    is_new: bool
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
        self._process_key = process.domain, process.process_id
        self._stamps = matching_stamps(process)
        self._reply = reply
        self._sent = sent
        self._values = dict(values)

    def take(self, connection: Connection) -> Taken:
        """Write everything or nothing."""
        return write_or_explain(
            lambda: self._write(connection), lambda: self._explain(connection), lambda: self._process_key
        )

    def _write(self, connection: Connection) -> Taken | None:
        statement = _STATEMENTS[self._reply is not None, min(len(self._sent), _SEVERAL)]
        # Of one command, all are logged or none. Of several, another transaction can log one while the statement runs.
        # Then the statement fails, and only a savepoint keeps the caller's transaction alive.
        may_fail = len(self._sent) >= _SEVERAL
        needs_savepoint = may_fail and not is_in_autocommit(connection)
        try:
            with _savepoint(connection) if needs_savepoint else nullcontext():
                written = read_written(connection.execute(statement, self._values))
        except DBAPIError as error:
            if not is_part_written(error):
                raise
            if may_fail:
                return None
            # Not another transaction: a trigger or a row policy. The caller's transaction is aborted, which keeps it
            # from committing a part.
            raise NothingWrittenError(*self._process_key) from error
        return None if written is None else Taken(is_new=True, row=written)

    def _explain(self, connection: Connection) -> Taken | None:
        """Return what a redelivery wrote; raise why nothing was written; return `None` if nothing is in the way."""
        actual = first_row(connection.execute(WHY_NOT_ADVANCED, self._values))
        recorded = None
        if self._reply is not None:
            recorded = first_row(connection.execute(WHY_NOT_RECORDED, self._values))
        logged = [first_row(connection.execute(WHY_NOT_LOGGED, self._logging(entry))) for entry in self._sent]
        if actual is not None and is_redelivery([*([] if self._reply is None else [recorded]), *logged]):
            return Taken(is_new=False, row=written_from(actual["written"]) if actual["same"] else None)
        match_row_again(self._values, self._stamps, actual)
        raise_first(self._why_not_taken(recorded, logged))
        return None

    def _why_not_taken(self, recorded: Row | None, logged: Sequence[Row | None]) -> list[ProcessRepositoryError | None]:
        not_there = [entry for entry, row in zip(self._sent, logged, strict=True) if row is None or not row["same"]]
        missing = f"command {not_there[0].command_id}" if not_there else "the reply"
        errors: list[ProcessRepositoryError | None] = []
        if self._reply is not None:
            errors.append(why_not_recorded(*self._process_key, recorded, self._reply, missing))
        for row, entry in zip(logged, self._sent, strict=True):
            errors.append(why_not_logged(*self._process_key, row, entry, missing))
        return errors

    def _logging(self, entry: ProcessAuditEntry) -> dict[str, Any]:
        return {**entry_columns(entry), **step_key(*self._process_key, entry.command_id)}
