"""Save a process with its first commands, and advance it: the statements, and why a step was not taken."""

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
from commandbus_process._columns import COMMAND_KEY, ENTRY, LOGGED, PROCESS_KEY, REPLY, SAME_PROCESS, TIMES, UPDATED
from commandbus_process._parameters import step_key
from commandbus_process._refusals import (
    is_redelivery,
    match_row_again,
    raise_first,
    why_not_taken,
    write_or_explain,
)
from commandbus_process._stamps import Written, matching_stamps, written_from
from commandbus_process.errors import NothingWrittenError
from commandbus_process.models import ProcessAuditEntry, ProcessMetadata, StepReply
from commandbus_process.postgres._database import Tables
from commandbus_process.postgres._expressions import (
    OF_PROCESS,
    ONE,
    PART_WRITTEN,
    equals_given,
    key_parameter,
    names_equal,
    parameter,
    rows_parameter,
    whole_or_failed,
)
from commandbus_process.postgres._reading import first_row, read_written
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

# The parameters of the commands that are sent. A single command, the usual case, is sent as one parameter a column: the
# server then takes a sixth less time than with JSON. Several commands are sent as rows in one JSON parameter.
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
    """Return one step of a process manager as one statement. It writes all of its parts, or none of them.

    The parts are the next commands, the reply and the process. `held` checks and locks all preconditions: the object
    still matches its row, the step has no reply yet and, if there are several commands, none of them is logged. (For a
    single command, ON CONFLICT is enough.) Every part is written from what `held` returns. The process is locked before
    the step. All writers lock in this order, so that they cannot deadlock.

    After `held`, another transaction can still log one of the commands. So the commands are logged first. The reply is
    recorded only if all commands were logged, and the process is updated only if the reply was recorded. If a part was
    written and the process was not, the statement fails, which undoes that part.
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
        # PostgreSQL looks up a scalar subquery by key for each command. It would turn an EXISTS into a join with the
        # whole trail.
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
    # Each part reads the key from the part before it, so it is written only if that part was. (Counting the rows of
    # each part instead took the server 8 % longer.)
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
    before = held if sent == "many" else parts[-1]  # several commands are several rows: they are counted instead
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
    """Return the statement that saves a new process and its first commands."""
    saved = SAVE.returning(*process.primary_key).cte("saved")
    logged = (
        insert(process_audit)
        .from_select(LOGGED, _steps_to_log(saved, many=many))
        .returning(process_audit.c.id)
        .cte("logged")
    )
    wanted = bindparam("sent_count", type_=Integer()) if many else ONE
    return select(saved.c.written).where(whole_or_failed(_count(logged) == wanted, saved))


# One statement for each case: with or without a reply; with no command, one, or several.
ADVANCE_ON_REPLY = _advance(with_reply=True, sent="none")
ADVANCE_WITH_ONE_SENT = _advance(with_reply=False, sent="one")
ADVANCE_WITH_SENT = _advance(with_reply=False, sent="many")
ADVANCE_ON_REPLY_WITH_ONE_SENT = _advance(with_reply=True, sent="one")
ADVANCE_ON_REPLY_WITH_SENT = _advance(with_reply=True, sent="many")
SAVE_WITH_ONE_SENT = _save_with(many=False)
SAVE_WITH_SENT = _save_with(many=True)

# Why a step was not taken, as far as the process shows it. No row: the process does not exist. Otherwise: the row's
# version, type and stamp, and whether the row already has what the step wants to write.
WHY_NOT_ADVANCED = WHY_NOT_WRITTEN.add_columns(
    and_(
        *(equals_given(process.c[name]) for name in SAME_PROCESS),
        # Of times, only whether there is one. A redelivery is handled at another time.
        *(process.c[name].is_(None) == parameter(process.c[name]).is_(None) for name in UPDATED if name in TIMES),
    ).label("same"),
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
    """Whether a statement failed because it would have written only a part. A trigger's own error is not meant."""
    message = getattr(getattr(error.orig, "diag", None), "message_primary", None) or ""
    return get_sqlstate(error) == _INVALID_TEXT_REPRESENTATION and PART_WRITTEN in message


@contextmanager
def _savepoint(connection: Connection) -> Generator[None]:
    with savepoint_open(connection), connection.begin_nested():
        yield


class Taken(NamedTuple):
    """The step was taken, by this call or by an earlier one.

    Attributes:
        is_new: Whether this call took it. If not, it is a redelivery.
        row: What the database has set; `None` if the row differs from the object.
    """

    is_new: bool
    row: Written | None


class Step:
    """One step: the reply, the commands that are sent, and the process after the step.

    Args:
        process: The process as it is after the step.
        reply: The reply that came, if any.
        sent: The commands that are sent.
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

    def take(self, tables: Tables) -> Taken:
        """Write everything or nothing."""
        return write_or_explain(lambda: self._write(tables), lambda: self._explain(tables), lambda: self._process_key)

    def _write(self, tables: Tables) -> Taken | None:
        statement = _STATEMENTS[self._reply is not None, min(len(self._sent), _SEVERAL)]
        # A single command is logged or not. If there are several, another transaction can log one of them while the
        # statement runs. Then the statement fails, and only a savepoint keeps the caller's transaction alive.
        may_fail = len(self._sent) >= _SEVERAL
        needs_savepoint = may_fail and not is_in_autocommit(tables.connection)
        try:
            with _savepoint(tables.connection) if needs_savepoint else nullcontext():
                written = read_written(tables.execute(statement, self._values))
        except DBAPIError as error:
            if not is_part_written(error):
                raise
            if may_fail:
                return None
            # The cause is not another transaction, but a trigger or a row-level security policy. The caller's
            # transaction is now aborted, so it cannot commit a part.
            raise NothingWrittenError(*self._process_key) from error
        return None if written is None else Taken(is_new=True, row=written)

    def _explain(self, tables: Tables) -> Taken | None:
        """Find out why nothing was written.

        Returns the step that was taken before, if this is a redelivery. Raises the error for anything else that
        prevents the step. Returns `None` if nothing prevents it any more.
        """
        actual = first_row(tables.execute(WHY_NOT_ADVANCED, self._values))
        recorded = None
        if self._reply is not None:
            recorded = first_row(tables.execute(WHY_NOT_RECORDED, self._values))
        logged = [first_row(tables.execute(WHY_NOT_LOGGED, self._logging(entry))) for entry in self._sent]
        if actual is not None and is_redelivery([*([] if self._reply is None else [recorded]), *logged]):
            return Taken(is_new=False, row=written_from(actual["stamp"]) if actual["same"] else None)
        match_row_again(self._values, self._stamps, actual)
        raise_first(why_not_taken(self._process_key, recorded, self._reply, logged, self._sent))
        return None

    def _logging(self, entry: ProcessAuditEntry) -> dict[str, Any]:
        return {**entry_columns(entry), **step_key(*self._process_key, entry.command_id)}
