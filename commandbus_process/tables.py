"""The schema as SQLAlchemy tables: what the newest Alembic revision leaves behind.

`alembic check` compares these with the migrations. A column is named here and nowhere else in the package: its `info`
says who sets it, and every list of columns, every reader and every right is made from that and from the column's type.
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

metadata = MetaData(schema="commandbus")

VERSION_TABLE = "commandbus_process_version"
"""Where Alembic keeps the revision, in the same schema: its default name belongs to the host application."""

FIRST_VERSION = 1
"""The version of a row that was inserted and not updated yet."""


class SetBy(Enum):
    """Who sets a column."""

    SAVE = auto()
    """`save` and `save_many`, from the process."""
    UPDATE = auto()
    """`update` and `advance`, from the process."""
    COMMAND = auto()
    """Whatever logs a step, from the entry."""
    REPLY = auto()
    """Whatever records a reply, from the reply."""
    DATABASE = auto()
    """The database: a default when a row is inserted, and in `process` an expression in each update."""


def _info(*set_by: SetBy, enum: type[StrEnum] | None = None) -> dict[str, Any]:
    """What a column says of itself: who sets it, and whose values its texts are."""
    return {"set_by": frozenset(set_by), "enum": enum}


_KEPT = _info(SetBy.SAVE)
_CHANGED = _info(SetBy.SAVE, SetBy.UPDATE)
_STATUS = _info(SetBy.SAVE, SetBy.UPDATE, enum=ProcessStatus)
_TOUCHED = _info(SetBy.SAVE, SetBy.DATABASE)
_COUNTED = _info(SetBy.DATABASE)
_SENT = _info(SetBy.COMMAND)
_REPLIED = _info(SetBy.REPLY)
_OUTCOME = _info(SetBy.REPLY, enum=ReplyOutcome)


def _is_one_of(column: str, values: type[StrEnum]) -> str:
    # One constant, not an expression of one for each value: the server prepares a CHECK again for each statement.
    return f"{column} = ANY ('{{{','.join(values)}}}'::text[])"


# CHECKs stand on the table and not on a column, where `alembic check` would not see them.
process = Table(
    "process",
    metadata,
    Column("domain", String(255), nullable=False, info=_KEPT),
    Column("process_id", Uuid, nullable=False, info=_KEPT),
    Column("process_type", String(255), nullable=False, info=_KEPT),
    Column("status", String(50), nullable=False, server_default="PENDING", info=_STATUS),
    Column("current_step", String(255), info=_CHANGED),  # NULL: no step begun, or none left
    Column("state", JSONB(none_as_null=True), nullable=False, server_default=text("'{}'::jsonb"), info=_CHANGED),
    Column("error_code", String(255), info=_CHANGED),
    Column("error_message", Text, info=_CHANGED),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now(), info=_KEPT),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now(), info=_TOUCHED),
    Column("completed_at", DateTime(timezone=True), info=_CHANGED),  # NULL: not ended
    # Optimistic concurrency. Neither now() nor xmin would do: both stay the same between two updates in a transaction.
    Column("version", BigInteger, nullable=False, server_default=text(str(FIRST_VERSION)), info=_COUNTED),
    PrimaryKeyConstraint("domain", "process_id", name="process_pkey"),
    CheckConstraint(_is_one_of("status", ProcessStatus), name="process_status_known"),
    CheckConstraint(f"version >= {FIRST_VERSION}", name="process_version_positive"),
    # find_by_status: one descent for each status, rows already in the order that is asked for. No index has
    # updated_at in it: every update changes that column, and none could stay on its page (HOT) any more.
    Index("idx_process_status_created", "domain", "status", "created_at", "process_id"),
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
    Column("command_data", JSONB(none_as_null=True), info=_SENT),  # NULL: the command has no data
    Column("sent_at", DateTime(timezone=True), nullable=False, info=_SENT),
    Column("reply_outcome", String(50), info=_OUTCOME),  # NULL: not replied yet
    Column("reply_data", JSONB(none_as_null=True), info=_REPLIED),
    Column("received_at", DateTime(timezone=True), info=_REPLIED),
    Column("compensates", Uuid, info=_SENT),  # the command that this one undoes; NULL: it undoes none
    # Every key begins with the process, so that both tables can be distributed by it, and this one serves the trail
    # and the foreign key too.
    PrimaryKeyConstraint("domain", "process_id", "id", name="process_audit_pkey"),
    # Redelivery: a command is logged once, and its reply is found by it.
    UniqueConstraint("domain", "process_id", "command_id", name="process_audit_command_key"),
    ForeignKeyConstraint(
        ["domain", "process_id"],
        ["commandbus.process.domain", "commandbus.process.process_id"],
        name="process_audit_domain_process_id_fkey",
    ),
    CheckConstraint("(reply_outcome IS NULL) = (received_at IS NULL)", name="process_audit_reply_check"),
    CheckConstraint(_is_one_of("reply_outcome", ReplyOutcome), name="process_audit_outcome_known"),
    # A JSON null is no data: other software writes it for none.
    CheckConstraint(
        "reply_outcome IS NOT NULL OR reply_data IS NULL OR reply_data = 'null'::jsonb",
        name="process_audit_data_with_outcome",
    ),
    CheckConstraint("compensates <> command_id", name="process_audit_compensates_another"),
)
