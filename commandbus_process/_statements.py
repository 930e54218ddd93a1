"""The statements of the repository, built once, from the tables.

Each is a value that can be compiled and read without a database. JSON travels as text in both directions: how an engine
turns Python into JSON is its owner's choice (`json_serializer`), and must not decide what this library stores.

Parameters carry their column's name; those that find a row carry it with `key_` before it, since SQLAlchemy keeps the
plain names in an UPDATE for the values.
"""

from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Integer,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from commandbus_process.models import ReplyOutcome
from commandbus_process.tables import process, process_audit

# What a new process is inserted with (its version is the column's default), what an update changes, and the two halves
# of an audit entry.
NEW_PROCESS = tuple(column.name for column in process.c if column is not process.c.version)
STATE_CHANGES = ("status", "current_step", "state", "error_code", "error_message", "completed_at")
UPDATED = (*STATE_CHANGES, "updated_at", "version")
COMMAND = ("step_name", "command_id", "command_type", "command_data", "sent_at")
REPLY = ("reply_outcome", "reply_data", "received_at")
NEW_STEP = ("domain", "process_id", *COMMAND, *REPLY)


def _given(column: Column[Any]) -> ColumnElement[Any]:
    """The parameter that carries a column's value."""
    if isinstance(column.type, JSONB):
        return cast(bindparam(column.name, type_=Text()), JSONB)
    return bindparam(column.name, type_=column.type)


def _stored(column: Column[Any]) -> ColumnElement[Any]:
    """The column's value; a JSON `null` that other software wrote counts as none where there may be none."""
    if isinstance(column.type, JSONB) and column.nullable:
        return func.nullif(column, cast(literal_column("'null'"), JSONB))
    return column


def _read(column: Column[Any]) -> ColumnElement[Any]:
    """The column as it is selected, under its own name."""
    return cast(_stored(column), Text).label(column.name) if isinstance(column.type, JSONB) else column


def _key(column: Column[Any]) -> BindParameter[Any]:
    return bindparam(f"key_{column.name}", type_=column.type)


def _same(column: Column[Any]) -> ColumnElement[bool]:
    """Whether the stored value is the given one.

    The database compares: to `jsonb`, 1e23 and 10**23 are the same number, to Python they are not.
    """
    return _stored(column).is_not_distinct_from(_given(column))


_IS_PROCESS = and_(process.c.domain == _key(process.c.domain), process.c.process_id == _key(process.c.process_id))
_OF_PROCESS = and_(
    process_audit.c.domain == _key(process.c.domain), process_audit.c.process_id == _key(process.c.process_id)
)
_IS_STEP = and_(_OF_PROCESS, process_audit.c.command_id == _key(process_audit.c.command_id))
_TRAIL_ORDER = (process_audit.c.sent_at, process_audit.c.id)

# ON CONFLICT DO NOTHING reports a taken key as "no row" instead of an error that aborts the caller's transaction.
SAVE = (
    insert(process)
    .values({name: _given(process.c[name]) for name in NEW_PROCESS})
    .on_conflict_do_nothing()
    .returning(process.c.version)
)

UPDATE = (
    update(process)
    .where(_IS_PROCESS)
    .values(
        {
            **{name: _given(process.c[name]) for name in STATE_CHANGES},
            "updated_at": func.now(),
            "version": process.c.version + 1,
        }
    )
    .returning(process.c.updated_at, process.c.version)
)
UPDATE_IF_UNCHANGED = UPDATE.where(process.c.version == _key(process.c.version))

# Why an update changed nothing: no row, no process; else what the row has.
VERSION = select(process.c.version, process.c.process_type).where(_IS_PROCESS)

GET_BY_ID = select(*(_read(column) for column in process.c)).where(_IS_PROCESS)
# FOR NO KEY UPDATE makes other writers of the process wait. Plain FOR UPDATE would also block the insertion of its
# steps, whose foreign key takes FOR KEY SHARE on it.
GET_BY_ID_LOCKING = GET_BY_ID.with_for_update(key_share=True)
GET_BY_ID_UNLESS_LOCKED = GET_BY_ID.with_for_update(key_share=True, skip_locked=True)

# The statuses are written into the statement, not sent beside it: the plan that the server keeps for a prepared
# statement must know them. As parameters they look equally frequent to it; among many ended processes it then reads the
# whole domain (21 ms for 200 waiting ones among 50,000) instead of the index (0.6 ms).
FIND_BY_STATUS = (
    select(*(_read(column) for column in process.c))
    .where(
        process.c.domain == _key(process.c.domain),
        process.c.status.in_(bindparam("statuses", expanding=True, literal_execute=True)),
    )
    .order_by(process.c.created_at, process.c.process_id)
)

CLAIM = FIND_BY_STATUS.limit(bindparam("limit", type_=Integer())).with_for_update(key_share=True, skip_locked=True)
IS_OF_TYPE = process.c.process_type == _key(process.c.process_type)
IS_UPDATED_BEFORE = process.c.updated_at < bindparam("updated_before", type_=process.c.updated_at.type)

# From the process, not from VALUES: without one, nothing is inserted, where a foreign key would raise an error and
# abort the caller's transaction. FOR KEY SHARE is the lock that the foreign key takes anyway; taken here, it waits for
# somebody who is deleting the process, and then finds none.
LOG_STEP = (
    insert(process_audit)
    .from_select(
        NEW_STEP,
        select(process.c.domain, process.c.process_id, *(_given(process_audit.c[name]) for name in (*COMMAND, *REPLY)))
        .where(_IS_PROCESS)
        .with_for_update(read=True, key_share=True),
    )
    .on_conflict_do_nothing()
    .returning(process_audit.c.id)
)

# A reply is recorded once: on an entry that has one, nothing is written.
RECORD_REPLY = (
    update(process_audit)
    .where(_IS_STEP, process_audit.c.reply_outcome.is_(None))
    .values({name: _given(process_audit.c[name]) for name in REPLY})
    .returning(process_audit.c.id)
)

_ENTRY = tuple(_read(process_audit.c[name]) for name in (*COMMAND, *REPLY))
_SAME_COMMAND = and_(
    *(_same(process_audit.c[name]) for name in ("step_name", "command_type", "command_data")),
)
_SAME_REPLY = and_(*(_same(process_audit.c[name]) for name in ("reply_outcome", "reply_data")))

# Why LOG_STEP inserted nothing: no row, no process; a row without a command, none logged any more; else the entry, and
# whether it is the same. The times do not count: a redelivered message is handled at another time.
_SAME_ENTRY = and_(_SAME_COMMAND, or_(_given(process_audit.c.reply_outcome).is_(None), _SAME_REPLY))
LOGGED_STEP = (
    select(*_ENTRY, _SAME_ENTRY.label("same"))
    .select_from(
        process.outerjoin(
            process_audit,
            and_(
                process_audit.c.domain == process.c.domain,
                process_audit.c.process_id == process.c.process_id,
                process_audit.c.command_id == _key(process_audit.c.command_id),
            ),
        )
    )
    .where(_IS_PROCESS)
)

# Why RECORD_REPLY wrote nothing: no row, no such step; else the entry, and whether its reply is the same.
RECORDED_REPLY = select(*_ENTRY, _SAME_REPLY.label("same")).where(_IS_STEP)

AUDIT_TRAIL = select(*_ENTRY).where(_OF_PROCESS).order_by(*_TRAIL_ORDER)

COMPLETED_STEPS = (
    select(process_audit.c.step_name)
    .where(_OF_PROCESS, process_audit.c.reply_outcome == ReplyOutcome.SUCCESS.value)
    .order_by(*_TRAIL_ORDER)
)
