"""Statements about one process, or about one step of it, built once.

Each is a value that can be compiled and read without a database; `tests/sql` has the SQL.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    String,
    Text,
    and_,
    cast,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningUpdate

from commandbus_process._columns import (
    COMMAND_KEY,
    ENTRY,
    LOGGED,
    PROCESS_KEY,
    REPLY,
    SAME_COMMAND,
    SAME_REPLY,
    SAVED,
    UPDATED,
)
from commandbus_process.models import ReplyOutcome
from commandbus_process.postgres._expressions import (
    IS_PROCESS,
    IS_STEP,
    OF_PROCESS,
    ONE,
    STAMP,
    WRITTEN,
    equals_given,
    equals_if_given,
    key_parameter,
    names_equal,
    parameter,
    selected,
)
from commandbus_process.tables import process, process_audit

# The number of rows says what an insert wrote: RETURNING would cost a result to be fetched. "inline" keeps SQLAlchemy
# from adding one for the columns that have a default.
COUNTED = {"preserve_rowcount": True}

# ON CONFLICT DO NOTHING reports a taken key as "no row" instead of an error that aborts the caller's transaction.
# It names its key: another unique index is the host's, and its error has the index's name.
SAVE = (
    insert(process)
    .inline()
    .values({name: parameter(process.c[name]) for name in SAVED})
    .on_conflict_do_nothing(index_elements=PROCESS_KEY)
    .returning(WRITTEN.label("written"))
)


def update_process(found: ColumnElement[bool]) -> ReturningUpdate[Any]:
    """Update the process that is found, and return what the database sets."""
    return (
        update(process)
        .where(found)
        .values(
            {
                **{name: parameter(process.c[name]) for name in UPDATED},
                "updated_at": func.pg_catalog.now(),
                "version": process.c.version + ONE,
            }
        )
        .returning(WRITTEN.label("written"))
    )


MATCHES_OBJECT = and_(
    IS_PROCESS,
    process.c.process_type == key_parameter(process.c.process_type),
    equals_if_given(process.c.version, "key_version"),
    equals_if_given(STAMP, "key_stamp"),
)
UPDATE = update_process(MATCHES_OBJECT)

# Why SAVE or UPDATE wrote nothing: no row, no process; else what the row has.
WHY_NOT_WRITTEN = select(process.c.version, process.c.process_type, STAMP.label("stamp")).where(IS_PROCESS)

# Of one process, all but its id, which is known, and its state comes as one JSON array. Each column of a result has its
# price on the way through the driver and SQLAlchemy, however few rows there are: of twelve, a fifth of the time that
# reading one process takes. Long lists are read by columns, since the server makes a row faster than such an array.
FIELDS = tuple(column.name for column in process.c if column not in {process.c.process_id, process.c.state})
GET_BY_ID = select(
    cast(func.pg_catalog.json_build_array(*(process.c[name] for name in FIELDS), STAMP), Text).label("fields"),
    selected(process.c.state),
).where(IS_PROCESS)
# FOR NO KEY UPDATE makes other writers of the process wait. Plain FOR UPDATE would also block the insertion of its
# steps, whose foreign key takes FOR KEY SHARE on it.
GET_BY_ID_LOCKING = GET_BY_ID.with_for_update(key_share=True)
GET_BY_ID_UNLESS_LOCKED = GET_BY_ID.with_for_update(key_share=True, skip_locked=True)

# From the process, not from VALUES: without one, nothing is inserted, where a foreign key would raise an error and
# abort the caller's transaction. FOR KEY SHARE is the lock that the foreign key takes anyway; taken here, it waits for
# somebody who is deleting the process, and then finds none.
LOG_STEP = (
    insert(process_audit)
    .inline()
    .from_select(
        LOGGED,
        select(*(process.c[name] for name in PROCESS_KEY), *(parameter(process_audit.c[name]) for name in ENTRY))
        .where(IS_PROCESS)
        .with_for_update(read=True, key_share=True),
    )
    .on_conflict_do_nothing(index_elements=COMMAND_KEY)
    .execution_options(**COUNTED)
)

ENTRY_SELECTED = tuple(selected(process_audit.c[name]) for name in ENTRY)


def is_same_entry(given: FromClause | None = None) -> ColumnElement[bool]:
    """Return whether the stored entry is the given one, which is in parameters by default."""

    def value(name: str) -> ColumnElement[Any]:
        return parameter(process_audit.c[name]) if given is None else given.c[name]

    def same(names: tuple[str, ...]) -> ColumnElement[bool]:
        return and_(*(equals_given(process_audit.c[name], value(name)) for name in names))

    return and_(same(SAME_COMMAND), or_(value("reply_outcome").is_(None), same(SAME_REPLY)))


# Why LOG_STEP inserted nothing: no row, no process; a row without a command, none is logged any more; else the entry,
# and whether it is the same.
WHY_NOT_LOGGED = (
    select(*ENTRY_SELECTED, is_same_entry().label("same"))
    .select_from(
        process.outerjoin(
            process_audit,
            and_(
                names_equal(process_audit, process, PROCESS_KEY),
                process_audit.c.command_id == key_parameter(process_audit.c.command_id),
            ),
        )
    )
    .where(IS_PROCESS)
)

# A reply is recorded once: on an entry that has one, nothing is written.
RECORD_REPLY = (
    update(process_audit)
    .where(IS_STEP, process_audit.c.reply_outcome.is_(None))
    .values({name: parameter(process_audit.c[name]) for name in REPLY})
    .execution_options(**COUNTED)
)

# The same in a transaction that goes on: every writer locks the process before its steps. Otherwise a transaction that
# holds the process and one that holds the step, and will update the process next, would wait for each other.
_HELD_PROCESS = select(*process.primary_key).where(IS_PROCESS).with_for_update(key_share=True).cte("held")
RECORD_REPLY_AND_LOCK = RECORD_REPLY.where(names_equal(process_audit, _HELD_PROCESS, PROCESS_KEY))

# Why RECORD_REPLY wrote nothing: no row, no such step; else the entry, and whether its reply is the same.
WHY_NOT_RECORDED = select(
    *ENTRY_SELECTED, and_(*(equals_given(process_audit.c[name]) for name in SAME_REPLY)).label("same")
).where(IS_STEP)

AUDIT_TRAIL = select(*ENTRY_SELECTED).where(OF_PROCESS).order_by(process_audit.c.sent_at, process_audit.c.id)

_SUCCESS = literal_column(f"'{ReplyOutcome.SUCCESS.value}'", String())
_SUCCEEDED = process_audit.c.reply_outcome == _SUCCESS
# In the order of logging: the clocks of workers differ, and compensation goes the same way back.
COMPLETED_STEPS = select(process_audit.c.step_name).where(OF_PROCESS, _SUCCEEDED).order_by(process_audit.c.id)


def _to_compensate(wanted: ColumnElement[bool]) -> Select[Any]:
    # Uncorrelated, so that the server makes one hash of it: 1.6 ms for a trail of 2,000 steps, where NOT EXISTS was a
    # nested loop of 200 ms. A single NULL would empty a NOT IN.
    undone = process_audit.alias("undone")
    of_process = and_(*(undone.c[name] == key_parameter(process.c[name]) for name in PROCESS_KEY))
    already = select(undone.c.compensates).where(
        of_process, undone.c.compensates.is_not(None), undone.c.reply_outcome == _SUCCESS
    )
    return (
        select(*ENTRY_SELECTED)
        .where(OF_PROCESS, wanted, process_audit.c.compensates.is_(None), process_audit.c.command_id.not_in(already))
        .order_by(process_audit.c.id.desc())
    )


STEPS_TO_COMPENSATE = _to_compensate(_SUCCEEDED)
STEPS_TO_COMPENSATE_OR_UNKNOWN = _to_compensate(or_(_SUCCEEDED, process_audit.c.reply_outcome.is_(None)))
