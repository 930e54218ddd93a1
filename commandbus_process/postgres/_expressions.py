"""Columns in SQL: as a parameter, as a value that is read, in a comparison.

JSON travels as text in both directions. How an engine turns Python into JSON is its owner's choice (`json_serializer`)
and must not decide what this library stores.

A parameter has its column's name. A parameter that finds a row has `key_` before it, since SQLAlchemy keeps the plain
names in an UPDATE for the values.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    Table,
    TableValuedAlias,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    extract,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import BindParameter, KeyedColumnElement

from commandbus_process._columns import PROCESS_KEY
from commandbus_process.tables import process, process_audit

ONE = literal_column("1", Integer())  # as a parameter it would be sent with each call


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
    """Return a column's value. Other software may write a JSON `null` for no data; it is read as NULL."""
    if isinstance(column, Column) and isinstance(column.type, JSONB) and column.nullable:
        return func.nullif(column, cast(literal_column("'null'"), JSONB))
    return column


def selected(column: KeyedColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column as it is selected, under its own name.

    A time is read as the text of a JSON string, which is ISO 8601 under every DateStyle. psycopg reads ISO only, and
    fails for all rows if one has a time that Python lacks.
    """
    if isinstance(column.type, DateTime):
        return cast(func.pg_catalog.to_json(column), Text).label(column.name)
    return cast(stored(column), Text).label(column.name) if isinstance(column.type, JSONB) else column


def equals_given(column: Column[Any], given: ColumnElement[Any] | None = None) -> ColumnElement[bool]:
    """Return whether a stored value is the given one, which is a parameter by default.

    The database compares: to `jsonb`, 1e23 and 10**23 are the same number, to Python they are not.
    """
    return stored(column).is_not_distinct_from(parameter(column) if given is None else given)


def equals_if_given(value: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Return whether a value is that of the parameter. A parameter that is NULL is not compared."""
    return value == func.coalesce(bindparam(name, type_=value.type), value)


def names_equal(table: FromClause, other: FromClause, names: Iterable[str]) -> ColumnElement[bool]:
    """Return whether the columns of these names are equal in both."""
    return and_(*(table.c[name] == other.c[name] for name in names))


def rows_parameter(table: Table, names: Sequence[str], name: str) -> TableValuedAlias:
    """Return rows that travel as a JSON array of objects in one parameter. The key `position` numbers them.

    It is the fastest way in which rows can still be compared with what is stored: 64,000 entries a second. A statement
    with many parameters reached 40,000.
    """
    columns = [column("position", Integer()), *(column(each, table.c[each].type) for each in names)]
    rows = func.pg_catalog.json_to_recordset(cast(bindparam(name, type_=Text()), JSON))
    return rows.table_valued(*columns).render_derived(name=f"given_{name}", with_types=True)


PART_WRITTEN = "only a part could be written"


def whole_or_failed(whole: ColumnElement[bool], first: CTE) -> ColumnElement[bool]:
    """Return true if all was written, and NULL if nothing was. If only a part was written, the statement fails.

    Args:
        whole: Whether all was written.
        first: The part that is written first. Without a row of it, nothing was written.
    """
    return case((whole, true()), else_=failure(PART_WRITTEN, first))


def failure(message: str, if_any: FromClause) -> ColumnElement[bool]:
    """Return an expression that makes the statement fail if there is a row: the text that it casts is no boolean.

    SQL has no other expression that raises. A failed statement takes back all that it wrote, in autocommit too.

    Args:
        message: What the error says.
        if_any: The rows. Without any, the expression is NULL.
    """
    text = select(literal_column(f"'{message}'", Text())).select_from(if_any).limit(ONE)
    return cast(text.scalar_subquery(), Boolean)


IS_PROCESS = and_(*(process.c[name] == key_parameter(process.c[name]) for name in PROCESS_KEY))
OF_PROCESS = and_(*(process_audit.c[name] == key_parameter(process.c[name]) for name in PROCESS_KEY))
IS_STEP = and_(OF_PROCESS, process_audit.c.command_id == key_parameter(process_audit.c.command_id))

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
# What the database sets, as one JSON array. No setting or loader can make it unreadable after the write is committed.
WRITTEN = cast(func.pg_catalog.json_build_array(process.c.version, process.c.updated_at, STAMP), Text)
