"""The schema as SQLAlchemy tables: what the newest Alembic revision leaves behind.

`alembic check` holds these against the migrations, and the names of the columns are written down here and nowhere else
in the package.
"""

from enum import StrEnum

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


def _is_one_of(column: str, values: type[StrEnum]) -> str:
    # One constant, not an expression of one for each value: the server prepares a CHECK again for each statement.
    return f"{column} = ANY ('{{{','.join(values)}}}'::text[])"


# CHECKs stand on the table and not on a column, where `alembic check` would not see them.
process = Table(
    "process",
    metadata,
    Column("domain", String(255), nullable=False),
    Column("process_id", Uuid, nullable=False),
    Column("process_type", String(255), nullable=False),
    Column("status", String(50), nullable=False, server_default="PENDING"),
    Column("current_step", String(255)),  # NULL: no step begun, or none left
    Column("state", JSONB(none_as_null=True), nullable=False, server_default=text("'{}'::jsonb")),
    Column("error_code", String(255)),
    Column("error_message", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("completed_at", DateTime(timezone=True)),  # NULL: not ended
    # Optimistic concurrency. Neither now() nor xmin would do: both stay the same between two updates in a transaction.
    Column("version", BigInteger, nullable=False, server_default=text(str(FIRST_VERSION))),
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
    Column("id", BigInteger, nullable=False, autoincrement=True),  # bigserial: the order of logging
    Column("domain", String(255), nullable=False),
    Column("process_id", Uuid, nullable=False),
    Column("step_name", String(255), nullable=False),
    Column("command_id", Uuid, nullable=False),
    Column("command_type", String(255), nullable=False),
    Column("command_data", JSONB(none_as_null=True)),  # NULL: the command has no data
    Column("sent_at", DateTime(timezone=True), nullable=False),
    Column("reply_outcome", String(50)),  # NULL: not replied yet
    Column("reply_data", JSONB(none_as_null=True)),
    Column("received_at", DateTime(timezone=True)),
    Column("compensates", Uuid),  # the command that this one undoes; NULL: it undoes none
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
