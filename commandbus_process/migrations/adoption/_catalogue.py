"""Read what two tables are from PostgreSQL's catalogue: columns, keys, indexes, and what else can change a write.

Only reads. Types are those that PostgreSQL has resolved: a domain is shown with the type that it stands for.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from sqlalchemy import Connection, TextClause, text

from commandbus_process.migrations.adoption import _catalogue_sql as queries
from commandbus_process.models import ProcessStatus, ReplyOutcome
from commandbus_process.tables import VERSION_TABLE, process, process_audit

TABLES = (process.name, process_audit.name)
KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "i": "index",
    "I": "index",
    "c": "type",
    "t": "table",
}
"""The letters of `pg_class.relkind`."""

_VALUES: Mapping[str, Iterable[str]] = {"status": ProcessStatus, "reply_outcome": ReplyOutcome}
_STRINGS = ("character varying", "text")


@dataclass(frozen=True)
class FoundSequence:
    """The sequence that feeds a column."""

    schema: str
    name: str
    increment: int
    cache: int
    cycles: bool
    is_behind: bool = False
    """Whether it has not reached the largest number of the column. None of this is known without a right to read it."""


@dataclass(frozen=True)
class FoundColumn:
    """A column."""

    name: str
    type: str
    """As `format_type` writes it. For a domain, the type that it stands for."""
    domain: str | None
    domain_has_rules: bool
    """Whether the domain refuses values: it is NOT NULL or has a CHECK."""
    collation: str | None
    is_deterministic: bool
    is_nullable: bool
    default: str | None
    identity: str
    """`a` for ALWAYS, `d` for BY DEFAULT, empty for none."""
    generated: str
    """`s` for stored, `v` for virtual, empty for a column that can be written."""
    sequence: FoundSequence | None
    used_by: tuple[str, ...]
    """What keeps PostgreSQL from changing the type: views, policies, triggers, foreign keys of other tables."""


@dataclass(frozen=True)
class FoundConstraint:
    """A key, a CHECK or an exclusion constraint."""

    name: str
    kind: Literal["p", "u", "f", "c", "x"]
    columns: tuple[str, ...]
    definition: str
    """As `pg_get_constraintdef` writes it, without NOT VALID."""
    is_valid: bool
    is_deferrable: bool
    is_enforced: bool
    references: str | None
    """The table that a foreign key refers to. In the same schema, it is named without it."""
    referenced_columns: tuple[str, ...]
    on_delete: str
    on_update: str
    refuses: tuple[str, ...]
    """The statuses or outcomes that a CHECK of this one column refuses."""


@dataclass(frozen=True)
class FoundIndex:
    """An index, also that of a key."""

    name: str
    definition: str
    """What follows the table: `btree (a, b) WHERE …`."""
    columns: tuple[str | None, ...]
    """The columns of its key. `None` stands for an expression."""
    is_unique: bool
    is_valid: bool
    is_of_constraint: bool


@dataclass(frozen=True)
class Foreign:
    """A foreign key of another table that refers to one of ours."""

    name: str
    table: str
    uses_primary_key: bool


@dataclass(frozen=True)
class FoundTrigger:
    """A trigger that somebody has made."""

    name: str
    function: str
    is_before_row: bool


@dataclass(frozen=True)
class FoundTable:
    """A table, or what stands in its place."""

    name: str
    kind: str
    is_unlogged: bool
    is_typed: bool
    partition_of: str | None
    children: tuple[str, ...]
    owner: str
    is_ours: bool
    """Whether the current role has the owner's rights."""
    is_readable: bool
    has_policies: bool
    hides_rows: bool
    """Whether row-level security is in force for the current role."""
    columns: Mapping[str, FoundColumn]
    constraints: tuple[FoundConstraint, ...]
    indexes: tuple[FoundIndex, ...]
    foreign: tuple[Foreign, ...]
    triggers: tuple[FoundTrigger, ...]
    rules: tuple[str, ...]

    def primary_key(self) -> FoundConstraint | None:
        """Return the primary key."""
        return next((each for each in self.constraints if each.kind == "p"), None)


@dataclass(frozen=True)
class Catalogue:
    """The two tables, what else has a name in their schema, and what the current role may do there."""

    schema: str
    server: int
    """Its version, as `server_version_num`: 180001."""
    role: str
    may_create: bool
    tables: Mapping[str, FoundTable]
    others: Mapping[str, str]
    """The kind of each other relation in the schema, by its name. Indexes of the two tables are not in it."""
    stamped: str | None
    """The revision in the version table."""


def read_catalogue(connection: Connection, schema: str) -> Catalogue:
    """Return what is in a schema. The search path must be pinned. About fifteen round trips."""
    role = _rows(connection, queries.ROLE, schema=schema)[0]
    found = _rows(connection, queries.TABLES, schema=schema, names=list(TABLES))
    oids = [row.oid for row in found]
    columns = _read_columns(connection, oids)
    constraints = _grouped(_rows(connection, queries.CONSTRAINTS, oids=oids, schema=schema))
    indexes = _grouped(_rows(connection, queries.INDEXES, oids=oids))
    foreign = _grouped(_rows(connection, queries.FOREIGN, oids=oids))
    triggers = _grouped(_rows(connection, queries.TRIGGERS, oids=oids))
    rules = _grouped(_rows(connection, queries.RULES, oids=oids))
    tables = {
        row.name: FoundTable(
            name=row.name,
            kind=KINDS[row.kind],
            is_unlogged=row.is_unlogged,
            is_typed=row.is_typed,
            partition_of=row.partition_of,
            children=tuple(row.children),
            owner=row.owner,
            is_ours=row.is_ours,
            is_readable=row.is_readable,
            has_policies=row.has_policies,
            hides_rows=row.hides_rows,
            columns=columns[row.oid],
            constraints=tuple(_constraint(connection, each, columns[row.oid]) for each in constraints[row.oid]),
            indexes=tuple(FoundIndex(**_fields(each, columns=tuple(each.columns))) for each in indexes[row.oid]),
            foreign=tuple(Foreign(**_fields(each)) for each in foreign[row.oid]),
            triggers=tuple(FoundTrigger(**_fields(each)) for each in triggers[row.oid]),
            rules=tuple(each.name for each in rules[row.oid]),
        )
        for row in found
    }
    own = {*TABLES, *(each.name for table in tables.values() for each in table.indexes)}
    others = {row.name: KINDS.get(row.kind, "relation") for row in _rows(connection, queries.OTHERS, schema=schema)}
    return Catalogue(
        schema=schema,
        server=role.server,
        role=role.role,
        may_create=role.may_create,
        tables=tables,
        others={name: kind for name, kind in others.items() if name not in own},
        stamped=_read_stamp(connection, schema),
    )


def as_it_is(query: str) -> TextClause:
    """Return a query without parameters. A colon in a name is none."""
    return text(query.replace(":", r"\:"))


def _rows(connection: Connection, query: str, **parameters: object) -> Sequence[Any]:
    return connection.execute(text(query), parameters).all()


def _grouped(rows: Iterable[Any]) -> Mapping[int, list[Any]]:
    """Return the rows by the table that they belong to."""
    groups: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row.of_table].append(row)
    return groups


def _fields(row: Any, **changed: object) -> dict[str, Any]:  # noqa: ANN401 - a row of any query
    fields = dict(row._mapping)  # noqa: SLF001 - public, in spite of its name
    del fields["of_table"]
    return fields | changed


def _read_columns(connection: Connection, oids: list[int]) -> Mapping[int, dict[str, FoundColumn]]:
    tables: dict[int, dict[str, FoundColumn]] = {oid: {} for oid in oids}
    used_by: dict[tuple[int, str], list[str]] = defaultdict(list)
    for row in _rows(connection, queries.USES, oids=oids):
        used_by[row.of_table, row.name].append(row.used_by)
    for row in _rows(connection, queries.COLUMNS, oids=oids):
        tables[row.of_table][row.name] = FoundColumn(
            name=row.name,
            type=row.type,
            domain=row.domain,
            domain_has_rules=row.domain_has_rules,
            collation=row.collation,
            is_deterministic=row.is_deterministic,
            is_nullable=row.is_nullable,
            default=row.default,
            identity=row.identity,
            generated=row.generated,
            sequence=_read_sequence(connection, row) if row.sequence is not None else None,
            used_by=tuple(used_by[row.of_table, row.name]),
        )
    return tables


def _read_sequence(connection: Connection, column: Any) -> FoundSequence:  # noqa: ANN401 - a row
    # The largest number first: a number is taken from the sequence before its row can be seen, so a sequence that is
    # read afterwards has reached it.
    largest = None
    if column.is_readable and column.type in {"bigint", "integer", "smallint"}:
        largest = connection.scalar(as_it_is(f"SELECT max({column.quoted_name}) FROM {column.quoted_table}"))  # noqa: S608
    found = _rows(connection, queries.SEQUENCE, oid=column.sequence)[0]
    is_behind = False
    if largest is not None and found.is_readable:
        query = f"SELECT last_value + is_called::int FROM {found.quoted_name}"  # noqa: S608 - quoted by the server
        is_behind = (connection.scalar(as_it_is(query)) or 0) <= largest
    return FoundSequence(found.schema, found.name, found.increment, found.cache, found.cycles, is_behind)


def _constraint(connection: Connection, row: Any, columns: Mapping[str, FoundColumn]) -> FoundConstraint:  # noqa: ANN401
    refuses: tuple[str, ...] = ()
    if row.kind == "c" and len(row.columns) == 1 and not row.calls_others and row.columns[0] in _VALUES:
        column = columns[row.columns[0]]
        if column.type.startswith(_STRINGS):
            refuses = _refused(connection, row.expression, column, _VALUES[column.name])
    fields = _fields(row, columns=tuple(row.columns), referenced_columns=tuple(row.referenced_columns), refuses=refuses)
    del fields["calls_others"], fields["expression"]
    return FoundConstraint(**fields)


def _refused(connection: Connection, check: str, column: FoundColumn, values: Iterable[str]) -> tuple[str, ...]:
    """Return the values that a CHECK refuses. The server evaluates it. It calls the server's own functions only."""
    name = column.name
    given = f"unnest(CAST(:given AS {column.type}[])) AS given({name})"
    query = f"SELECT {name} FROM {given} WHERE NOT ({check})"  # noqa: S608 - the server has written the CHECK
    # A colon in the CHECK is no parameter of ours.
    statement = text(query.replace(":", r"\:").replace(r"\:given", ":given"))
    return tuple(chain.from_iterable(connection.execute(statement, {"given": list(values)})))


def _read_stamp(connection: Connection, schema: str) -> str | None:
    query = _rows(connection, queries.VERSION_TABLE, schema=schema, name=VERSION_TABLE)
    if not query:
        return None
    revision = connection.scalar(as_it_is(f"SELECT max(version_num) FROM {query[0].quoted_name}"))  # noqa: S608
    return None if revision is None else str(revision)
