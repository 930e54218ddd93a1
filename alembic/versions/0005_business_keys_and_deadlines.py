"""Business keys, deadlines, versions of states, and the indexes that find processes by them.

Adds three nullable columns without a default, and two indexes.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("process", sa.Column("business_key", sa.String(255)), schema="commandbus")
    op.add_column("process", sa.Column("deadline", sa.DateTime(timezone=True)), schema="commandbus")
    op.add_column("process", sa.Column("state_version", sa.Integer), schema="commandbus")
    op.create_index(
        "idx_process_deadline",
        "process",
        ["domain", "status", "deadline", "process_id"],
        schema="commandbus",
        postgresql_where=sa.text("deadline IS NOT NULL"),
    )
    op.create_index(
        "idx_process_business_key",
        "process",
        ["domain", "business_key"],
        schema="commandbus",
        postgresql_where=sa.text("business_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("idx_process_business_key", "process", schema="commandbus")
    op.drop_index("idx_process_deadline", "process", schema="commandbus")
    op.drop_column("process", "state_version", schema="commandbus")
    op.drop_column("process", "deadline", schema="commandbus")
    op.drop_column("process", "business_key", schema="commandbus")
