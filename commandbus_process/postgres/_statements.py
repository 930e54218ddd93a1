"""The statements of the repository, built once, from the tables.

Each is a value that can be compiled and read without a database. JSON travels as text in both directions: how an engine
turns Python into JSON is its owner's choice (`json_serializer`), and must not decide what this library stores.

Parameters carry their column's name; those that find a row carry it with `key_` before it, since SQLAlchemy keeps the
plain names in an UPDATE for the values.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    Select,
    String,
    Table,
    TableValuedAlias,
    Text,
    Uuid,
    all_,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    exists,
    extract,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import KeyedColumnElement

from commandbus_process.models import ProcessStatus, ReplyOutcome
from commandbus_process.tables import process, process_audit

# What a new process is inserted with (its version is the column's default), what an update changes, and the two halves
# of an audit entry. The names are plain texts: those of SQLAlchemy's columns are of a class of its own, and as keys of
# an object they take Pydantic 20 times as long to write as JSON.
NEW_PROCESS = tuple(str(column.name) for column in process.c if column is not process.c.version)
STATE_CHANGES = ("status", "current_step", "state", "error_code", "error_message", "completed_at")
UPDATED = (*STATE_CHANGES, "updated_at", "version")
TIMES = frozenset(column.name for column in (*process.c, *process_audit.c) if isinstance(column.type, DateTime))
COMMAND = ("step_name", "command_id", "command_type", "command_data", "sent_at", "compensates")
REPLY = ("reply_outcome", "reply_data", "received_at")
ENTRY = (*COMMAND, *REPLY)
NEW_STEP = ("domain", "process_id", *ENTRY)
COMMAND_KEY = ("domain", "process_id", "command_id")
# Whose values are JSON text in Python.
JSON_COLUMNS = frozenset(column.name for column in (*process.c, *process_audit.c) if isinstance(column.type, JSONB))


# As a parameter it would be sent with each call.
_ONE = literal_column("1", Integer())


def _given(column: Column[Any], parameter: str | None = None) -> ColumnElement[Any]:
    """The parameter that carries a column's value, under the column's name where it has none of its own."""
    name = parameter or column.name
    if isinstance(column.type, JSONB):
        return cast(bindparam(name, type_=Text()), JSONB)
    return bindparam(name, type_=column.type)


def _stored(column: KeyedColumnElement[Any]) -> ColumnElement[Any]:
    """The column's value; a JSON `null` that other software wrote counts as none where there may be none."""
    if isinstance(column, Column) and isinstance(column.type, JSONB) and column.nullable:
        return func.nullif(column, cast(literal_column("'null'"), JSONB))
    return column


def _read(column: KeyedColumnElement[Any]) -> ColumnElement[Any]:
    """The column as it is selected, under its own name.

    A time is read as the text of a JSON string, which is ISO 8601 whatever DateStyle is. psycopg reads ISO only, and
    fails for all rows if one has a time that Python lacks.
    """
    if isinstance(column.type, DateTime):
        return cast(func.pg_catalog.to_json(column), Text).label(column.name)
    return cast(_stored(column), Text).label(column.name) if isinstance(column.type, JSONB) else column


def _key(column: Column[Any]) -> BindParameter[Any]:
    return bindparam(f"key_{column.name}", type_=column.type)


def _same(column: Column[Any], given: ColumnElement[Any] | None = None) -> ColumnElement[bool]:
    """Whether the stored value is the given one.

    The database compares: to `jsonb`, 1e23 and 10**23 are the same number, to Python they are not.
    """
    return _stored(column).is_not_distinct_from(_given(column) if given is None else given)


_IS_PROCESS = and_(process.c.domain == _key(process.c.domain), process.c.process_id == _key(process.c.process_id))
_OF_PROCESS = and_(
    process_audit.c.domain == _key(process.c.domain), process_audit.c.process_id == _key(process.c.process_id)
)
_IS_STEP = and_(_OF_PROCESS, process_audit.c.command_id == _key(process_audit.c.command_id))
_TRAIL_ORDER = (process_audit.c.sent_at, process_audit.c.id)

# Which row it is, in a form that nothing can repeat. The version tells two updates of one transaction apart. The id of
# the transaction or savepoint that wrote the row (xmin) tells apart what was written after a rollback. The time tells
# apart what was written after a fail-over or a restore, where transaction ids can come again.
STAMP = func.pg_catalog.concat_ws(
    literal_column("' '"),
    process.c.version,
    literal_column("process.xmin", Text()),
    extract("epoch", process.c.updated_at),
    type_=Text(),
)
# What the database sets, as one JSON array: no setting or loader can make its reading fail after the
# write is committed.
_WRITTEN = cast(func.pg_catalog.json_build_array(process.c.version, process.c.updated_at, STAMP), Text)

# What an insert wrote is told by the number of rows: RETURNING would cost a result to be fetched. "inline" keeps
# SQLAlchemy from adding one for the columns that have a default.
_COUNTED = {"preserve_rowcount": True}

# ON CONFLICT DO NOTHING reports a taken key as "no row" instead of an error that aborts the caller's transaction.
# It names its key: another unique index is the host's, and its error has the index's name.
SAVE = (
    insert(process)
    .inline()
    .values({name: _given(process.c[name]) for name in NEW_PROCESS})
    .on_conflict_do_nothing(index_elements=list(process.primary_key))
    .returning(_WRITTEN.label("written"))
)


def _changes(found: ColumnElement[bool]) -> ReturningUpdate[Any]:
    """Update a process, and return what the database sets."""
    return (
        update(process)
        .where(found)
        .values(
            {
                **{name: _given(process.c[name]) for name in STATE_CHANGES},
                "updated_at": func.pg_catalog.now(),
                "version": process.c.version + _ONE,
            }
        )
        .returning(_WRITTEN.label("written"))
    )


def _if_given(stored: ColumnElement[Any], parameter: str) -> ColumnElement[bool]:
    """Whether the stored value is the given one; NULL is not compared."""
    return stored == func.coalesce(bindparam(parameter, type_=stored.type), stored)


_AS_EXPECTED = and_(
    _IS_PROCESS,
    process.c.process_type == _key(process.c.process_type),
    _if_given(process.c.version, "key_version"),
    _if_given(STAMP, "key_stamp"),
)
UPDATE = _changes(_AS_EXPECTED)

# Why an update changed nothing: no row, no process; else what the row has.
VERSION = select(process.c.version, process.c.process_type, STAMP.label("stamp")).where(_IS_PROCESS)
# The same, and whether the row has what the update was to write. Times do not count: a redelivery is handled later.
UPDATED_PROCESS = VERSION.add_columns(
    _WRITTEN.label("written"),
    and_(*(_same(process.c[name]) for name in STATE_CHANGES if name not in TIMES)).label("same"),
)

_PROCESS = (*(_read(column) for column in process.c), STAMP.label("stamp"))
_OLDEST_FIRST = (process.c.created_at, process.c.process_id)

# Of one process, all but its id, which is known, and its state comes as one JSON array. Each column of a result has its
# price on the way through the driver and SQLAlchemy, however few rows there are: of twelve, a fifth of the time that
# reading one process takes. Long lists are read by columns, since the server makes a row faster than such an array.
FIELDS = tuple(column.name for column in process.c if column not in {process.c.process_id, process.c.state})
GET_BY_ID = select(
    cast(func.pg_catalog.json_build_array(*(process.c[name] for name in FIELDS), STAMP), Text).label("fields"),
    _read(process.c.state),
).where(_IS_PROCESS)
# FOR NO KEY UPDATE makes other writers of the process wait. Plain FOR UPDATE would also block the insertion of its
# steps, whose foreign key takes FOR KEY SHARE on it.
GET_BY_ID_LOCKING = GET_BY_ID.with_for_update(key_share=True)
GET_BY_ID_UNLESS_LOCKED = GET_BY_ID.with_for_update(key_share=True, skip_locked=True)


def _in_status(statuses: Sequence[str]) -> ColumnElement[bool]:
    """Whether a process is in one of the statuses.

    They are written into the statement, not sent beside it: the plan that the server keeps for a prepared statement
    must know them. As parameters they look equally frequent to it; among many ended processes it then reads the whole
    domain (21 ms for 200 waiting ones among 50,000) instead of the index (0.6 ms).
    """
    literals = [literal_column(f"'{ProcessStatus(status).value}'", process.c.status.type) for status in statuses]
    of_status = process.c.status == literals[0] if len(literals) == 1 else process.c.status.in_(literals)
    return and_(process.c.domain == _key(process.c.domain), of_status)


def _conditions(*, of_types: bool, updated_before: bool, skipping: bool) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if of_types:
        conditions.append(process.c.process_type == any_(bindparam("key_process_types", type_=ARRAY(String))))
    if updated_before:
        conditions.append(process.c.updated_at < bindparam("updated_before", type_=process.c.updated_at.type))
    if skipping:
        conditions.append(process.c.process_id != all_(bindparam("seen", type_=ARRAY(Uuid))))
    return conditions


def _limit() -> BindParameter[int]:
    return bindparam("limit", type_=Integer())


@cache
def find_by_status(
    statuses: tuple[str, ...], *, of_types: bool = False, limited: bool = False, skipping: bool = False
) -> Select[Any]:
    """All processes in one of the statuses, or the first of them, oldest first.

    Sorted in a subquery, so that a state is turned into text on its way out: PostgreSQL would do it before it sorts,
    and sort the texts along (3.5 ms instead of 2.0 for a thousand processes).

    Args:
        statuses: What to look for.
        of_types: Only of the process types in `key_process_types`.
        limited: Not more than `limit`.
        skipping: Without the ids in `seen`.
    """
    conditions = _conditions(of_types=of_types, updated_before=False, skipping=skipping)
    inner = select(process, STAMP.label("stamp")).where(_in_status(statuses), *conditions).order_by(*_OLDEST_FIRST)
    found = (inner.limit(_limit()) if limited else inner).subquery("found")
    return select(*(_read(column) for column in found.c)).order_by(found.c.created_at, found.c.process_id)


@cache
def claim(
    statuses: tuple[str, ...], *, of_types: bool = False, updated_before: bool = False, skipping: bool = False
) -> Select[Any]:
    """The oldest processes in one of the statuses that nobody else holds, locked.

    No more is read than is returned: each status in the order of the index, and of several statuses the oldest first of
    what was read. A plain IN reads and sorts all that match (3.7 ms for 3,000; so 0.3). The rows of a UNION cannot be
    locked, so they are joined to the process by its key, which is asked for its status again: the lock is taken later
    than the reading. The arguments are those of `find_by_status`.
    """
    conditions = _conditions(of_types=of_types, updated_before=updated_before, skipping=skipping)
    if len(statuses) == 1:
        oldest = select(*_PROCESS).where(_in_status(statuses), *conditions).order_by(*_OLDEST_FIRST)
    else:
        candidate = union_all(*(_in_order(each, conditions) for each in statuses)).subquery("candidate")
        is_candidate = and_(*(candidate.c[key.name] == key for key in process.primary_key))
        oldest = (
            select(*_PROCESS)
            .join_from(candidate, process, is_candidate)
            .where(_in_status(statuses), *conditions)
            .order_by(candidate.c.created_at, candidate.c.process_id)
        )
    return oldest.limit(_limit()).with_for_update(key_share=True, skip_locked=True, of=process)


def _in_order(status: str, conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    # There is no limit; but as the server cannot know that when it plans, it reads as if few rows were wanted.
    no_limit = select(literal_column("NULL::bigint", BigInteger())).scalar_subquery()
    return (
        select(*process.primary_key, process.c.created_at)
        .where(_in_status([status]), *conditions)
        .order_by(*_OLDEST_FIRST)
        .limit(no_limit)
    )


# From the process, not from VALUES: without one, nothing is inserted, where a foreign key would raise an error and
# abort the caller's transaction. FOR KEY SHARE is the lock that the foreign key takes anyway; taken here, it waits for
# somebody who is deleting the process, and then finds none.
LOG_STEP = (
    insert(process_audit)
    .inline()
    .from_select(
        NEW_STEP,
        select(process.c.domain, process.c.process_id, *(_given(process_audit.c[name]) for name in ENTRY))
        .where(_IS_PROCESS)
        .with_for_update(read=True, key_share=True),
    )
    .on_conflict_do_nothing(index_elements=COMMAND_KEY)
    .execution_options(**_COUNTED)
)

# A reply is recorded once: on an entry that has one, nothing is written.
RECORD_REPLY = (
    update(process_audit)
    .where(_IS_STEP, process_audit.c.reply_outcome.is_(None))
    .values({name: _given(process_audit.c[name]) for name in REPLY})
    .execution_options(**_COUNTED)
)

# The same in a transaction that goes on: every writer locks the process before its steps. Otherwise a transaction that
# holds the process and one that holds the step, and will update the process next, would wait for each other.
_HELD_PROCESS = select(*process.primary_key).where(_IS_PROCESS).with_for_update(key_share=True).cte("held")
RECORD_REPLY_AND_LOCK = RECORD_REPLY.where(
    process_audit.c.domain == _HELD_PROCESS.c.domain, process_audit.c.process_id == _HELD_PROCESS.c.process_id
)

_ENTRY_READ = tuple(_read(process_audit.c[name]) for name in ENTRY)
_SAME_REPLY = and_(*(_same(process_audit.c[name]) for name in ("reply_outcome", "reply_data")))


def _same_entry(given: FromClause | None = None) -> ColumnElement[bool]:
    """Whether the stored entry is the given one. The times do not count: a redelivery is handled at another time."""

    def of_given(name: str) -> ColumnElement[Any]:
        return _given(process_audit.c[name]) if given is None else given.c[name]

    def same(*names: str) -> list[ColumnElement[bool]]:
        return [_same(process_audit.c[name], of_given(name)) for name in names]

    return and_(
        *same("step_name", "command_type", "command_data", "compensates"),
        or_(of_given("reply_outcome").is_(None), and_(*same("reply_outcome", "reply_data"))),
    )


# Why LOG_STEP inserted nothing: no row, no process; a row without a command, none logged any more; else the entry, and
# whether it is the same.
LOGGED_STEP = (
    select(*_ENTRY_READ, _same_entry().label("same"))
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
RECORDED_REPLY = select(*_ENTRY_READ, _SAME_REPLY.label("same")).where(_IS_STEP)

AUDIT_TRAIL = select(*_ENTRY_READ).where(_OF_PROCESS).order_by(*_TRAIL_ORDER)

_SUCCEEDED = process_audit.c.reply_outcome == literal_column(f"'{ReplyOutcome.SUCCESS.value}'", String())
# In the order of logging: the clocks of workers differ, and compensation goes the same way back.
COMPLETED_STEPS = select(process_audit.c.step_name).where(_OF_PROCESS, _SUCCEEDED).order_by(process_audit.c.id)


def _to_compensate(wanted: ColumnElement[bool]) -> Select[Any]:
    # Uncorrelated, so that the server makes one hash of it: 1.6 ms for a trail of 2,000 steps, where NOT EXISTS was a
    # nested loop of 200 ms. A single NULL would empty a NOT IN.
    undone = process_audit.alias("undone")
    of_process = and_(undone.c.domain == _key(process.c.domain), undone.c.process_id == _key(process.c.process_id))
    succeeded = undone.c.reply_outcome == literal_column(f"'{ReplyOutcome.SUCCESS.value}'", String())
    already = select(undone.c.compensates).where(of_process, undone.c.compensates.is_not(None), succeeded)
    return (
        select(*_ENTRY_READ)
        .where(_OF_PROCESS, wanted, process_audit.c.compensates.is_(None), process_audit.c.command_id.not_in(already))
        .order_by(process_audit.c.id.desc())
    )


STEPS_TO_COMPENSATE = _to_compensate(_SUCCEEDED)
STEPS_TO_COMPENSATE_OR_UNKNOWN = _to_compensate(or_(_SUCCEEDED, process_audit.c.reply_outcome.is_(None)))


def _given_rows(table: Table, names: Sequence[str], parameter: str) -> TableValuedAlias:
    """Rows that travel as one JSON array of objects, in one parameter, whatever their number.

    The quickest way that can still be checked against what is stored: 64,000 entries a second, where one statement with
    many parameters reached 40,000. The key `position` numbers them.
    """
    columns = [column("position", Integer()), *(column(name, table.c[name].type) for name in names)]
    rows = func.pg_catalog.json_to_recordset(cast(bindparam(parameter, type_=Text()), JSON))
    return rows.table_valued(*columns).render_derived(name=f"given_{parameter}", with_types=True)


def _read_once(given: TableValuedAlias) -> CTE:
    # What is read from twice, PostgreSQL keeps.
    return select(*given.c).cte("given")


def _is_given(table: FromClause, given: FromClause, names: Sequence[str]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == given.c[name] for name in names))


# The commands of a step of a process manager, beside the parameters of its reply: one as parameters, several as rows.
_SENT_ROWS = _given_rows(process_audit, ENTRY, "sent")


def _sent(column: Column[Any]) -> ColumnElement[Any]:
    return _given(column, f"sent_{column.name}")


_STEP_KEY = ("domain", "process_id", "command_id")
_PROCESS_KEY = ("domain", "process_id")


def _save_many() -> Select[Any]:
    given = _read_once(_given_rows(process, NEW_PROCESS, "processes"))
    saved = (
        insert(process)
        .from_select(NEW_PROCESS, select(*(given.c[name] for name in NEW_PROCESS)).order_by(given.c.position))
        .on_conflict_do_nothing(index_elements=_PROCESS_KEY)
        .returning(*process.primary_key)
        .cte("saved")
    )
    missing = ~exists(select(_ONE).select_from(saved).where(_is_given(saved, given, _PROCESS_KEY)))
    return select(given.c.position).where(missing).order_by(given.c.position)


def _taken_of_many() -> Select[Any]:
    given = _given_rows(process, _PROCESS_KEY, "processes")
    return select(given.c.position).join_from(given, process, _is_given(process, given, _PROCESS_KEY))


def _log_many() -> Insert:
    given = _given_rows(process_audit, NEW_STEP, "steps")
    return (
        insert(process_audit)
        .inline()
        .from_select(
            NEW_STEP,
            select(*(given.c[name] for name in NEW_STEP))
            .join_from(given, process, _is_given(process, given, _PROCESS_KEY))
            .order_by(given.c.position)  # entries of one time are listed in the order of their ids
            .with_for_update(read=True, key_share=True, of=process),
        )
        .on_conflict_do_nothing(index_elements=_STEP_KEY)
        .execution_options(**_COUNTED)
    )


def _written_many() -> Select[Any, str]:
    given = _given_rows(process, _PROCESS_KEY, "keys")
    return select(given.c.position, _WRITTEN.label("written")).join_from(
        given, process, _is_given(process, given, _PROCESS_KEY)
    )


def _logged_many() -> Select[Any]:
    given = _given_rows(process_audit, NEW_STEP, "steps")
    same = _same_entry(given)
    return (
        select(given.c.position, process.c.process_id.label("process_id"), *_ENTRY_READ)
        .select_from(
            given.outerjoin(process, _is_given(process, given, _PROCESS_KEY)).outerjoin(
                process_audit, _is_given(process_audit, given, _STEP_KEY)
            )
        )
        .where(func.coalesce(same, false()).is_(false()))
    )


# The rows are written in the order of their positions. ON CONFLICT names the library's own key: a conflict with
# anything else, a unique index of the host's for example, is the server's error.
#
# Gives the positions of the rows that were not written, and of those the ones whose key is in the table.
SAVE_MANY = _save_many()
WRITTEN_MANY = _written_many()
TAKEN_OF_MANY = _taken_of_many()
# Its row count says how many were written. Finding out which would cost a fifth more: 31 instead of 27 microseconds a
# row.
LOG_MANY = _log_many()
# Of the rows, those that are not there as they were given: without `process_id`, there is no process; without
# `command_id`, none is logged any more; else the entry that is.
LOGGED_MANY = _logged_many()


def _advance(*, with_reply: bool, sent: Literal["none", "one", "many"]) -> Select[Any]:
    """One step of a process manager in one statement: the next commands, the reply, the process, or none of them.

    Everything that must hold is looked at and locked in `held`: the version, the step that has no reply yet, and that
    none of several commands is logged (a single one is, or it is not). All that is written is read from there. The
    process is locked before the step: every writer keeps this order, so that none waits for another that waits for it.

    One thing can still come in between, a command that another transaction is logging at this moment. So the commands
    are logged first, the reply is recorded only if all of them were, and the process is updated only then. Where a part
    was written and the process was not, the statement fails: in autocommit, too, that leaves nothing behind.

    One command, the usual number, travels as parameters: the server takes a sixth less time than with JSON.
    """
    step = process_audit.alias("step")
    is_replied = process_audit.c.command_id == _key(process_audit.c.command_id)

    held_from: FromClause = process
    locked: list[FromClause] = [process]
    conditions = [_AS_EXPECTED]
    if with_reply:
        held_from = process.join(step, and_(*(step.c[name] == process.c[name] for name in _PROCESS_KEY)))
        locked.append(step)
        conditions += [step.c.command_id == _key(process_audit.c.command_id), step.c.reply_outcome.is_(None)]
    if sent == "many":
        # A scalar subquery is looked up by key for each command; an EXISTS would become a join with the whole trail.
        is_command = and_(_OF_PROCESS, process_audit.c.command_id == _SENT_ROWS.c.command_id)
        logged_before = select(process_audit.c.id).where(is_command).correlate(_SENT_ROWS).scalar_subquery()
        conditions.append(~exists(select(_ONE).select_from(_SENT_ROWS).where(logged_before.is_not(None))))
    held = (
        select(*process.primary_key)
        .select_from(held_from)
        .where(*conditions)
        .with_for_update(key_share=True, of=locked)
        .cte("held")
    )
    is_process = _is_given(process, held, _PROCESS_KEY)
    parts: list[CTE] = []
    so_far: list[ColumnElement[bool]] = []
    if sent != "none":
        logged = (
            insert(process_audit)
            .from_select(NEW_STEP, _steps_to_log(held, many=sent == "many"))
            .on_conflict_do_nothing(index_elements=COMMAND_KEY)
            .returning(process_audit.c.id)
            .cte("logged")
        )
        parts.append(logged)
        so_far = [_count(logged) == (_ONE if sent == "one" else bindparam("sent_count", type_=Integer()))]
    if with_reply:
        replied = (
            update(process_audit)
            .where(_is_given(process_audit, held, _PROCESS_KEY), is_replied, *so_far)
            .values({name: _given(process_audit.c[name]) for name in REPLY})
            .returning(process_audit.c.id)
            .cte("replied")
        )
        parts.append(replied)
        so_far = [_count(replied) == _ONE]
    changed = _changes(and_(is_process, *so_far)).cte("changed")
    count = sum((_count(each) for each in parts[1:]), _count(parts[0]))
    one_row = select(_ONE).subquery("one_row")
    return (
        select(changed.c.written)
        .select_from(one_row.outerjoin(changed, true()))
        .where(_is_whole(changed.c.written.is_not(None), count))
    )


PART_WRITTEN = "only a part could be written"


def _is_whole(whole: ColumnElement[bool], count: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether all was written; false if nothing was.

    If only a part was, the statement fails, since the text is no boolean: that undoes the part, in autocommit too.
    SQL has no other expression that raises an error.
    """
    fails = cast(literal_column(f"'{PART_WRITTEN}: '", Text()).op("||")(cast(count, Text)), Boolean)
    return case((whole, true()), (count == literal_column("0"), false()), else_=fails)


def _save_with(*, many: bool) -> Select[Any]:
    """A new process and its first commands in one statement."""
    saved = SAVE.returning(*process.primary_key).cte("saved")
    logged = (
        insert(process_audit)
        .from_select(NEW_STEP, _steps_to_log(saved, many=many))
        .returning(process_audit.c.id)
        .cte("logged")
    )
    wanted = bindparam("sent_count", type_=Integer()) if many else _ONE
    return select(saved.c.written).where(_is_whole(_count(logged) == wanted, _count(saved)))


def _steps_to_log(held: CTE, *, many: bool) -> Select[Any]:
    key = (held.c[name] for name in _PROCESS_KEY)
    if not many:
        return select(*key, *(_sent(process_audit.c[name]) for name in ENTRY))
    columns = (_SENT_ROWS.c[name] for name in ENTRY)
    return select(*key, *columns).join_from(held, _SENT_ROWS, true()).order_by(_SENT_ROWS.c.position)


def _count(written: CTE) -> ColumnElement[int]:
    return select(func.pg_catalog.count(literal_column("*"))).select_from(written).scalar_subquery()


# By whether there is a reply, and how many commands there are to log.
ADVANCE_ON_REPLY = _advance(with_reply=True, sent="none")
ADVANCE_WITH_ONE_SENT = _advance(with_reply=False, sent="one")
ADVANCE_WITH_SENT = _advance(with_reply=False, sent="many")
ADVANCE_ON_REPLY_WITH_ONE_SENT = _advance(with_reply=True, sent="one")
ADVANCE_ON_REPLY_WITH_SENT = _advance(with_reply=True, sent="many")

SAVE_WITH_ONE_SENT = _save_with(many=False)
SAVE_WITH_SENT = _save_with(many=True)
