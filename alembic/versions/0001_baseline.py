"""The tables as they are in existing command-bus databases, which were created by hand-written SQL.

If your database has them already, do not run this revision. Adopt the tables with `alembic stamp 0001`.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

REFUSE_EXISTING = """
DO $$
BEGIN
    IF to_regclass('commandbus.process') IS NOT NULL OR to_regclass('commandbus.process_audit') IS NOT NULL THEN
        RAISE EXCEPTION 'the tables of revision 0001 exist already'
            USING HINT = 'Adopt them: run "alembic stamp 0001", then "alembic upgrade head". Their rows are kept.';
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(REFUSE_EXISTING)
    op.create_table(
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
        schema="commandbus",
    )
    op.create_index("idx_process_type", "process", ["domain", "process_type"], schema="commandbus")
    op.create_index("idx_process_status", "process", ["domain", "status"], schema="commandbus")
    op.create_index("idx_process_created", "process", ["created_at"], schema="commandbus")
    op.create_table(
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
            ["commandbus.process.domain", "commandbus.process.process_id"],
            name="process_audit_domain_process_id_fkey",
        ),
        schema="commandbus",
    )
    op.create_index("idx_process_audit_process", "process_audit", ["domain", "process_id"], schema="commandbus")
    op.create_index("idx_process_audit_command", "process_audit", ["command_id"], schema="commandbus")


def downgrade() -> None:
    # The schema stays: it contains Alembic's version table, and may contain the rest of the command bus.
    op.drop_table("process_audit", schema="commandbus")
    op.drop_table("process", schema="commandbus")
