"""The two tables, as SQLAlchemy knows them: the schema after the newest Alembic revision.

`alembic check` compares them with the migrations. A column is declared here, and nowhere else in this package except as
a field of its model. Its `info` names who sets it. Every list of columns, every reader and every GRANT is derived from
`info` and from the column's type.
"""

from enum import Enum, StrEnum, auto
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from commandbus_process.models import ProcessStatus, ReplyOutcome

SCHEMA = "commandbus"
"""The schema of the tables, unless another one is chosen."""

metadata = MetaData(schema=SCHEMA)

REVISION = "commandbus_0005"
"""The newest Alembic revision. It makes the tables as they are declared here, which is what the library needs."""

VERSION_TABLE = "commandbus_process_version"
"""The table in which Alembic keeps the revision, in the same schema. Its default name is the host application's."""

FIRST_VERSION = 1
"""The version of a row that was inserted and never updated."""

STATE_VERSION = "state_version"
"""The column that says in which version of its type a state is stored. It is no field: the state's type sets it."""


class SetBy(Enum):
    """Who sets a column."""

    SAVE = auto()
    """`save` and `save_many`, from the process."""
    UPDATE = auto()
    """`update` and `advance`, from the process."""
    COMMAND = auto()
    """Every method that logs a step, from the entry."""
    REPLY = auto()
    """Every method that records a reply, from the reply."""
    DATABASE = auto()
    """The database: by a default on INSERT and, in `process`, by an expression in each UPDATE."""


def _info(*set_by: SetBy, enum: type[StrEnum] | None = None, erased: bool = False) -> dict[str, Any]:
    """Return a column's `info`: who sets it, the enumeration of its values, if any, and whether `erase` empties it."""
    return {"set_by": frozenset(set_by), "enum": enum, "erased": erased}


_KEPT = _info(SetBy.SAVE)
_CHANGED = _info(SetBy.SAVE, SetBy.UPDATE)
_STATUS = _info(SetBy.SAVE, SetBy.UPDATE, enum=ProcessStatus)
_TOUCHED = _info(SetBy.SAVE, SetBy.DATABASE)
_COUNTED = _info(SetBy.DATABASE)
_KEPT_ERASED = _info(SetBy.SAVE, erased=True)
_CHANGED_ERASED = _info(SetBy.SAVE, SetBy.UPDATE, erased=True)
_SENT_ERASED = _info(SetBy.COMMAND, erased=True)
_REPLY_ERASED = _info(SetBy.REPLY, erased=True)
_SENT = _info(SetBy.COMMAND)
_REPLIED = _info(SetBy.REPLY)
_OUTCOME = _info(SetBy.REPLY, enum=ReplyOutcome)


def _is_one_of(column: str, values: type[StrEnum]) -> str:
    # One array constant. IN would be one expression for each value, and the server prepares a CHECK again for each
    # statement: 12 µs an update instead of 6.
    return f"{column} = ANY ('{{{','.join(values)}}}'::text[])"


# Every CHECK belongs to the table. `alembic check` does not see the CHECK of a column.
process = Table(
    "process",
    metadata,
    Column("domain", String(255), nullable=False, info=_KEPT),
    Column("process_id", Uuid, nullable=False, info=_KEPT),
    Column("process_type", String(255), nullable=False, info=_KEPT),
    Column("status", String(50), nullable=False, server_default="PENDING", info=_STATUS),
    Column("current_step", String(255), info=_CHANGED),  # NULL: no step begun, or none left
    Column(
        "state",
        JSONB(none_as_null=True),
        nullable=False,
        server_default=text("'{}'::jsonb"),
        info=_CHANGED_ERASED,
    ),
    Column("error_code", String(255), info=_CHANGED),
    Column("error_message", Text, info=_CHANGED_ERASED),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now(), info=_KEPT),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now(), info=_TOUCHED),
    Column("completed_at", DateTime(timezone=True), info=_CHANGED),  # NULL: not ended
    # For optimistic concurrency. now() and xmin alone do not suffice: two updates in one transaction share them.
    Column("version", BigInteger, nullable=False, server_default=text(str(FIRST_VERSION)), info=_COUNTED),
    Column("business_key", String(255), info=_KEPT_ERASED),  # what people call the process: an order number
    Column("deadline", DateTime(timezone=True), info=_CHANGED),  # when somebody must look if nothing came
    Column(STATE_VERSION, Integer, info=_CHANGED),  # the version of the state's type; NULL: 1
    PrimaryKeyConstraint("domain", "process_id", name="process_pkey"),
    CheckConstraint(_is_one_of("status", ProcessStatus), name="process_status_known"),
    CheckConstraint(f"version >= {FIRST_VERSION}", name="process_version_positive"),
    # For find_by_status and claim: one index descent for each status, with the rows already sorted. No index contains
    # updated_at: every update changes that column, so no update could be heap-only (HOT) any more.
    Index("idx_process_status_created", "domain", "status", "created_at", "process_id"),
    # The same for a list in the order of deadlines. Many processes can have the same deadline, so the id is in it, too.
    Index(
        "idx_process_deadline",
        "domain",
        "status",
        "deadline",
        "process_id",
        postgresql_where=text("deadline IS NOT NULL"),
    ),
    Index("idx_process_business_key", "domain", "business_key", postgresql_where=text("business_key IS NOT NULL")),
)

process_audit = Table(
    "process_audit",
    metadata,
    Column("id", BigInteger, nullable=False, autoincrement=True, info=_COUNTED),  # bigserial: the order of logging
    Column("domain", String(255), nullable=False, info=_SENT),
    Column("process_id", Uuid, nullable=False, info=_SENT),
    Column("step_name", String(255), nullable=False, info=_SENT),
    Column("command_id", Uuid, nullable=False, info=_SENT),
    Column("command_type", String(255), nullable=False, info=_SENT),
    Column("command_data", JSONB(none_as_null=True), info=_SENT_ERASED),  # NULL: the command has no data
    Column("sent_at", DateTime(timezone=True), nullable=False, info=_SENT),
    Column("reply_outcome", String(50), info=_OUTCOME),  # NULL: not replied yet
    Column("reply_data", JSONB(none_as_null=True), info=_REPLY_ERASED),
    Column("received_at", DateTime(timezone=True), info=_REPLIED),
    Column("compensates", Uuid, info=_SENT),  # the command that this one undoes; NULL: it undoes none
    # Every key begins with the process, so that both tables can be distributed by it. This index also serves the trail
    # and the foreign key.
    PrimaryKeyConstraint("domain", "process_id", "id", name="process_audit_pkey"),
    # A redelivered command is logged only once. A reply finds its command by this key.
    UniqueConstraint("domain", "process_id", "command_id", name="process_audit_command_key"),
    ForeignKeyConstraint(
        ["domain", "process_id"],
        [f"{SCHEMA}.process.domain", f"{SCHEMA}.process.process_id"],
        name="process_audit_domain_process_id_fkey",
    ),
    CheckConstraint("(reply_outcome IS NULL) = (received_at IS NULL)", name="process_audit_reply_check"),
    CheckConstraint(_is_one_of("reply_outcome", ReplyOutcome), name="process_audit_outcome_known"),
    # A JSON null counts as no data: other software may write it.
    CheckConstraint(
        "reply_outcome IS NOT NULL OR reply_data IS NULL OR reply_data = 'null'::jsonb",
        name="process_audit_data_with_outcome",
    ),
    CheckConstraint("compensates <> command_id", name="process_audit_compensates_another"),
)
