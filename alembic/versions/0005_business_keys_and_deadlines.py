"""Business keys, deadlines, versions of states, and the indexes that find processes by them.

Adds three nullable columns without a default. Older versions of this library and plain SQL go on working, because they
need not know them.

Takes an ACCESS EXCLUSIVE lock on `process` for a moment, to add the columns. It scans nothing. Then it builds two
indexes concurrently, so everybody can go on reading and writing: that reads the table twice, and waits until
transactions have ended that began before. If it is interrupted there, upgrade again.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

from commandbus_process._revisions import create_indexes, lock_tables, remove_guards

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# IF NOT EXISTS: an upgrade that was interrupted while it built the indexes begins here again.
ADD_COLUMNS = """
ALTER TABLE commandbus.process
    ADD COLUMN IF NOT EXISTS business_key varchar(255),
    ADD COLUMN IF NOT EXISTS deadline timestamptz,
    ADD COLUMN IF NOT EXISTS state_version integer
"""
INDEXES = {
    "idx_process_deadline": "(domain, status, deadline, process_id) WHERE (deadline IS NOT NULL)",
    "idx_process_business_key": "(domain, business_key) WHERE (business_key IS NOT NULL)",
}


def upgrade() -> None:
    lock_tables("process")
    op.execute(ADD_COLUMNS)
    create_indexes("process", INDEXES)


def downgrade() -> None:
    lock_tables("process", "process_audit")
    remove_guards()
    op.drop_column("process", "state_version", schema="commandbus")
    op.drop_column("process", "deadline", schema="commandbus")  # and the indexes
    op.drop_column("process", "business_key", schema="commandbus")
