"""Business keys, deadlines, versions of states, and the indexes that find processes by them.

Adds three nullable columns without a default. Older versions of this library and plain SQL go on working, because they
need not know them.

Takes an ACCESS EXCLUSIVE lock on `process` for a moment, to add the columns. It scans nothing. Then it builds two
indexes concurrently, so everybody can go on reading and writing: that reads the table twice, and waits until
transactions have ended that began before. If it is interrupted there, upgrade again.

Revision ID: commandbus_0005
Revises: commandbus_0004
"""

from commandbus_process.migrations._change import Change

revision = "commandbus_0005"
down_revision = "commandbus_0004"
branch_labels = None
depends_on = None

kind = "expand"
works_with_code_since = "commandbus_0001"

# IF NOT EXISTS: an upgrade that was interrupted while it built the indexes begins here again.
ADD_COLUMNS = """
ALTER TABLE {schema}.process
    ADD COLUMN IF NOT EXISTS business_key varchar(255),
    ADD COLUMN IF NOT EXISTS deadline timestamptz,
    ADD COLUMN IF NOT EXISTS state_version integer
"""
INDEXES = {
    "idx_process_deadline": "(domain, status, deadline, process_id) WHERE (deadline IS NOT NULL)",
    "idx_process_business_key": "(domain, business_key) WHERE (business_key IS NOT NULL)",
}


def upgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process")
    change.execute(ADD_COLUMNS)
    change.create_indexes("process", INDEXES)


def downgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process", "process_audit")
    change.remove_guards()
    change.op.drop_column("process", "state_version", schema=change.schema)
    change.op.drop_column("process", "deadline", schema=change.schema)  # and the indexes
    change.op.drop_column("process", "business_key", schema=change.schema)
