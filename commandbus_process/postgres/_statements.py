"""The statements about one process, or about one step of it.

Each is built once, at import, and can be compiled without a database. `tests/sql` shows the SQL.
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
    READ,
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
    PROCESS_SELECTED,
    STAMP,
    equals_given,
    equals_if_given,
    has_given_id,
    key_parameter,
    names_equal,
    parameter,
    selected,
)
from commandbus_process.tables import process, process_audit

# The row count is enough to know what an UPDATE wrote. RETURNING would cost the fetch of a result.
COUNTED = {"preserve_rowcount": True}

# With ON CONFLICT DO NOTHING, a taken key returns no row. An error would abort the caller's transaction. It names the
# key, so that a conflict with a unique index of the host application is still an error, with that index's name.
SAVE = (
    insert(process)
    .inline()
    .values({name: parameter(process.c[name]) for name in SAVED})
    .on_conflict_do_nothing(index_elements=PROCESS_KEY)
    .returning(STAMP.label("written"))
)


def update_process(found: ColumnElement[bool]) -> ReturningUpdate[Any]:
    """Return the statement that updates the process that `found` selects. It returns what the database sets."""
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
        .returning(STAMP.label("written"))
    )


MATCHES_OBJECT = and_(
    IS_PROCESS,
    process.c.process_type == key_parameter(process.c.process_type),
    equals_if_given(process.c.version, "key_version"),
    equals_if_given(STAMP, "key_stamp"),
    # A state that is newer than the repository knows is never overwritten, not even by an object that was never read.
    key_parameter(process.c.state_version) >= func.coalesce(process.c.state_version, ONE),
)
UPDATE = update_process(MATCHES_OBJECT)

# Why SAVE or UPDATE wrote nothing. No row: the process does not exist. Otherwise: the row's version, type, stamp and
# version of the state.
WHY_NOT_WRITTEN = select(
    process.c.version, process.c.process_type, STAMP.label("stamp"), process.c.state_version
).where(IS_PROCESS)

# A single process is read as one JSON array and its state; its id is known. Each column of a result costs time in the
# driver and in SQLAlchemy: twelve columns took a fifth of the time that it takes to read one process. Lists are read by
# columns, because the server makes a row faster than such an array.
FIELDS = tuple(name for name in READ if name not in {"process_id", "state"})
GET_BY_ID = select(
    cast(func.pg_catalog.json_build_array(*(process.c[name] for name in FIELDS), STAMP), Text).label("fields"),
    selected(process.c.state),
).where(IS_PROCESS)
GET_BY_IDS = select(*PROCESS_SELECTED).where(has_given_id(process))
# FOR NO KEY UPDATE makes other writers of the process wait. Plain FOR UPDATE would also block inserting its steps,
# because their foreign key takes FOR KEY SHARE on the process.
GET_BY_ID_LOCKING = GET_BY_ID.with_for_update(key_share=True)
GET_BY_ID_UNLESS_LOCKED = GET_BY_ID.with_for_update(key_share=True, skip_locked=True)

# INSERT from a SELECT of the process, not from VALUES. If there is no process, nothing is inserted. With VALUES the
# foreign key would raise an error, which aborts the caller's transaction. The foreign key takes FOR KEY SHARE anyway.
# Taken by a SELECT, the lock waits for somebody who is deleting the process, and then finds no process. The SELECT is a
# WITH query, because Citus refuses INSERT ... SELECT ... FOR KEY SHARE. PostgreSQL never merges a WITH query that locks
# into the rest, so the process is locked before anything is inserted. If an entry was inserted, it returns a row. The
# row count is not enough: Citus counts what ON CONFLICT has left out of an INSERT ... SELECT, too.
_KEPT_PROCESS = select(*process.primary_key).where(IS_PROCESS).with_for_update(read=True, key_share=True).cte("held")
LOG_STEP = (
    insert(process_audit)
    .inline()
    .from_select(
        LOGGED,
        select(*(_KEPT_PROCESS.c[name] for name in PROCESS_KEY), *(parameter(process_audit.c[name]) for name in ENTRY)),
    )
    .on_conflict_do_nothing(index_elements=COMMAND_KEY)
    .returning(ONE)
)

ENTRY_SELECTED = tuple(selected(process_audit.c[name]) for name in ENTRY)


def is_same_entry(given: FromClause | None = None) -> ColumnElement[bool]:
    """Return whether the stored entry is the same as the given one, which is in parameters by default."""

    def value(name: str) -> ColumnElement[Any]:
        return parameter(process_audit.c[name]) if given is None else given.c[name]

    def same(names: tuple[str, ...]) -> ColumnElement[bool]:
        return and_(*(equals_given(process_audit.c[name], value(name)) for name in names))

    return and_(same(SAME_COMMAND), or_(value("reply_outcome").is_(None), same(SAME_REPLY)))


# Why LOG_STEP inserted nothing. No row: the process does not exist. A row whose command is NULL: no entry is logged
# (any more). Otherwise: the entry that is logged, and whether it is the same.
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

# A reply is recorded only once: an entry that has a reply is not changed.
RECORD_REPLY = (
    update(process_audit)
    .where(IS_STEP, process_audit.c.reply_outcome.is_(None))
    .values({name: parameter(process_audit.c[name]) for name in REPLY})
    .execution_options(**COUNTED)
)

# The same for a transaction that goes on. Every writer locks the process before its steps. Otherwise there would be a
# deadlock: one transaction holds the process and wants the step, another one holds the step and wants the process.
_HELD_PROCESS = select(*process.primary_key).where(IS_PROCESS).with_for_update(key_share=True).cte("held")
RECORD_REPLY_AND_LOCK = RECORD_REPLY.where(names_equal(process_audit, _HELD_PROCESS, PROCESS_KEY))

# Why RECORD_REPLY wrote nothing. No row: the step does not exist. Otherwise: the entry, and whether its reply is the
# same.
WHY_NOT_RECORDED = select(
    *ENTRY_SELECTED, and_(*(equals_given(process_audit.c[name]) for name in SAME_REPLY)).label("same")
).where(IS_STEP)

AUDIT_TRAIL = select(*ENTRY_SELECTED).where(OF_PROCESS).order_by(process_audit.c.sent_at, process_audit.c.id)

_SUCCESS = literal_column(f"'{ReplyOutcome.SUCCESS.value}'", String())
_SUCCEEDED = process_audit.c.reply_outcome == _SUCCESS
# In the order of logging, because the workers' clocks differ. Compensation goes through the steps in reverse.
COMPLETED_STEPS = select(process_audit.c.step_name).where(OF_PROCESS, _SUCCEEDED).order_by(process_audit.c.id)


def _to_compensate(wanted: ColumnElement[bool]) -> Select[Any]:
    # The subquery is not correlated, so the server hashes it once: 1.6 ms for a trail of 2,000 steps. NOT EXISTS became
    # a nested loop of 200 ms. NULLs are left out, because NOT IN matches nothing if there is one.
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
