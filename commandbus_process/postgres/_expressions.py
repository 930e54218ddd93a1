"""Build the parts of statements: parameters, columns as they are read, and comparisons.

JSON is sent and read as text. An engine may have its own way to turn Python into JSON (`json_serializer`), which must
not change what this library stores.

A parameter has the name of its column. A parameter that finds a row has the prefix `key_`, because SQLAlchemy reserves
the plain names in an UPDATE for the new values.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    FromClause,
    Function,
    Integer,
    Table,
    TableValuedAlias,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import BindParameter, KeyedColumnElement

from commandbus_process._columns import PROCESS_KEY, READ
from commandbus_process.tables import process, process_audit

ONE = literal_column("1", Integer())  # as a parameter it would be sent with each call
COUNT: Function[int] = func.pg_catalog.count(literal_column("*"), type_=BigInteger())


def parameter(column: Column[Any], prefix: str = "") -> ColumnElement[Any]:
    """Return the parameter that carries a column's value."""
    name = f"{prefix}{column.name}"
    if isinstance(column.type, JSONB):
        return cast(bindparam(name, type_=Text()), JSONB)
    return bindparam(name, type_=column.type)


def key_parameter(column: Column[Any]) -> BindParameter[Any]:
    """Return the parameter that is compared with a column, to find a row."""
    return bindparam(f"key_{column.name}", type_=column.type)


def stored(column: KeyedColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column's value. Other software may write a JSON `null` if there is no data. It is read as NULL."""
    if isinstance(column, Column) and isinstance(column.type, JSONB) and column.nullable:
        return func.nullif(column, cast(literal_column("'null'"), JSONB))
    return column


def selected(column: KeyedColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column as it is selected, under its own name.

    A time is selected as the text of a JSON string, which is ISO 8601 under every DateStyle. psycopg itself can read
    only the DateStyle ISO. It would also fail for all rows if one row has a time that Python cannot represent.
    """
    if isinstance(column.type, DateTime):
        return cast(func.pg_catalog.to_json(column), Text).label(column.name)
    return cast(stored(column), Text).label(column.name) if isinstance(column.type, JSONB) else column


def equals_given(column: Column[Any], given: ColumnElement[Any] | None = None) -> ColumnElement[bool]:
    """Return whether a stored value equals the given one. By default that is the column's parameter.

    The database compares them, because 1e23 and 10**23 are equal in `jsonb` and not in Python.
    """
    return stored(column).is_not_distinct_from(parameter(column) if given is None else given)


def equals_if_given(value: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Return whether a value equals the parameter. A NULL parameter is not compared."""
    return value == func.coalesce(bindparam(name, type_=value.type), value)


def names_equal(table: FromClause, other: FromClause, names: Iterable[str]) -> ColumnElement[bool]:
    """Return whether two tables are equal in the columns of these names."""
    return and_(*(table.c[name] == other.c[name] for name in names))


def rows_parameter(table: Table, names: Sequence[str], name: str) -> TableValuedAlias:
    """Return rows that are sent as a JSON array of objects in one parameter. The key `position` numbers them.

    This is the fastest way to write rows that can still be compared with what is stored: 64,000 entries a second. A
    statement with many parameters reached 40,000.
    """
    columns = [column("position", Integer()), *(column(each, table.c[each].type) for each in names)]
    rows = func.pg_catalog.json_to_recordset(cast(bindparam(name, type_=Text()), JSON))
    return rows.table_valued(*columns).render_derived(name=f"given_{name}", with_types=True)


def has_given_id(table: Table) -> ColumnElement[bool]:
    """Return whether a row belongs to one of the processes whose ids are given, in the domain that is given."""
    ids = bindparam("process_ids", type_=ARRAY(Uuid))
    return and_(table.c.domain == key_parameter(table.c.domain), table.c.process_id == any_(ids))


PART_WRITTEN = "only a part could be written"


def whole_or_failed(whole: ColumnElement[bool], first: CTE) -> ColumnElement[bool]:
    """Return true if everything was written, and NULL if nothing was. If only a part was written, the statement fails.

    Args:
        whole: Whether everything was written.
        first: The part that is written first. If it has no row, nothing was written.
    """
    return case((whole, true()), else_=failure(PART_WRITTEN, first))


def failure(message: str, if_any: FromClause) -> ColumnElement[bool]:
    """Return an expression that makes the statement fail if there is a row: it casts a text that is not a boolean.

    The cast fails on purpose: SQL has no other expression that raises an error. A failed statement undoes everything
    that it wrote, even in autocommit.

    Args:
        message: The text that is cast. PostgreSQL's error quotes it.
        if_any: The rows. If there are none, the expression is NULL and nothing fails.
    """
    text = select(literal_column(f"'{message}'", Text())).select_from(if_any).limit(ONE)
    return cast(text.scalar_subquery(), Boolean)


IS_PROCESS = and_(*(process.c[name] == key_parameter(process.c[name]) for name in PROCESS_KEY))
OF_PROCESS = and_(*(process_audit.c[name] == key_parameter(process.c[name]) for name in PROCESS_KEY))
IS_STEP = and_(OF_PROCESS, process_audit.c.command_id == key_parameter(process_audit.c.command_id))

# The stamp identifies one written state of a row: no later write produces the same stamp. The version distinguishes two
# updates in one transaction. The id of the transaction or savepoint that wrote the row (xmin) distinguishes writes
# before and after a rollback. The time distinguishes writes before and after a fail-over or a restore, when transaction
# ids can be used again. The version of the state comes last, if the row has one: the object shows it.
#
# All of it is immutable: the result depends on no setting of the session. Citus takes nothing else after RETURNING. So
# the time is in hexadecimal digits, as the server would send it in binary: microseconds since 2000.
_SPACE = literal_column("' '", Text())
STAMP = (
    cast(process.c.version, Text)
    .concat(_SPACE)
    .concat(cast(literal_column("process.xmin"), Text))
    .concat(_SPACE)
    .concat(
        func.pg_catalog.encode(
            func.pg_catalog.timestamptz_send(process.c.updated_at), literal_column("'hex'", Text()), type_=Text()
        )
    )
    .concat(func.coalesce(_SPACE.concat(cast(process.c.state_version, Text)), literal_column("''", Text())))
)
PROCESS_ROW = (*(process.c[name] for name in READ), STAMP.label("stamp"))
"""What a list reads of a process: all columns, and the stamp of the row."""
PROCESS_SELECTED = tuple(selected(column) for column in PROCESS_ROW)
