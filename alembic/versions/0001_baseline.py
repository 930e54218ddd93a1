"""The tables as they are in existing command-bus databases, which were created by hand-written SQL.

If your database has them already, do not run this revision. Adopt the tables: docs/schema.md.

Revision ID: commandbus_0001
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from commandbus_process.migrations._change import Change

revision = "commandbus_0001"
down_revision = None
branch_labels = ("commandbus_process",)
depends_on = None

kind = "expand"
works_with_code_since = "commandbus_0001"

REFUSE_EXISTING = """
DO $$
BEGIN
    IF to_regclass(format('%I.process', {name})) IS NOT NULL
            OR to_regclass(format('%I.process_audit', {name})) IS NOT NULL THEN
        RAISE EXCEPTION 'the tables of revision 0001 exist already'
            USING HINT = 'Adopt them: run "python -m commandbus_process.migrations adopt". Their rows are kept.';
    END IF;
END
$$
"""


def upgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.create_schema()
    change.execute(REFUSE_EXISTING)
    change.op.create_table(
        "process",
        sa.Column("domain", sa.String(255), nullable=False),
        sa.Column("process_id", sa.Uuid, nullable=False),
        sa.Column("process_type", sa.String(255), nullable=False),
        sa.Column("status", sa.String(50), nullable=False, server_default="PENDING"),
        sa.Column("current_step", sa.String(255)),
        sa.Column("state", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("error_code", sa.String(255)),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("domain", "process_id", name="process_pkey"),
        schema=change.schema,
    )
    change.op.create_index("idx_process_type", "process", ["domain", "process_type"], schema=change.schema)
    change.op.create_index("idx_process_status", "process", ["domain", "status"], schema=change.schema)
    change.op.create_index("idx_process_created", "process", ["created_at"], schema=change.schema)
    change.op.create_table(
        "process_audit",
        sa.Column("id", sa.BigInteger, nullable=False, autoincrement=True),
        sa.Column("domain", sa.String(255), nullable=False),
        sa.Column("process_id", sa.Uuid, nullable=False),
        sa.Column("step_name", sa.String(255), nullable=False),
        sa.Column("command_id", sa.Uuid, nullable=False),
        sa.Column("command_type", sa.String(255), nullable=False),
        sa.Column("command_data", JSONB),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reply_outcome", sa.String(50)),
        sa.Column("reply_data", JSONB),
        sa.Column("received_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="process_audit_pkey"),
        sa.ForeignKeyConstraint(
            ["domain", "process_id"],
            [f"{change.schema}.process.domain", f"{change.schema}.process.process_id"],
            name="process_audit_domain_process_id_fkey",
        ),
        schema=change.schema,
    )
    change.op.create_index("idx_process_audit_process", "process_audit", ["domain", "process_id"], schema=change.schema)
    change.op.create_index("idx_process_audit_command", "process_audit", ["command_id"], schema=change.schema)


def downgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    # The schema stays: it contains Alembic's version table, and may contain the rest of the command bus.
    change.op.drop_table("process_audit", schema=change.schema)
    change.op.drop_table("process", schema=change.schema)
