"""The command that a step undoes, and CHECKs that reject invalid rows.

Adds a nullable column and five CHECKs. Older versions of this library and plain SQL go on working, because they never
write the values that the CHECKs reject.

Takes an ACCESS EXCLUSIVE lock on both tables until it commits, on `process` first, as every writer does. It scans no
table with rows, so it takes only a moment. It waits a moment for those who read the tables, lets others pass, and tries
again.

The CHECKs are NOT VALID. They hold for every row that is written from now on. Rows that break one can still be read,
but an UPDATE of such a row must also correct it. In empty tables the CHECKs are valid at once. In tables with rows,
these queries find the rows that break a CHECK:

    SELECT domain, process_id, status, version FROM commandbus.process
        WHERE version < 1 OR status NOT IN ('PENDING', 'IN_PROGRESS', 'WAITING', 'WAITING_FOR_TSQ', 'COMPENSATING',
                                            'COMPLETED', 'COMPENSATED', 'FAILED', 'CANCELED');
    SELECT domain, process_id, command_id, reply_outcome FROM commandbus.process_audit
        WHERE reply_outcome NOT IN ('SUCCESS', 'FAILED', 'CANCELED')
           OR (reply_outcome IS NULL AND reply_data <> 'null');

Correct them, and validate the CHECKs when you like. New rows do not need that. It reads the table once, under a SHARE
UPDATE EXCLUSIVE lock, so everybody can go on reading and writing:

    ALTER TABLE commandbus.process VALIDATE CONSTRAINT process_status_known;
    ALTER TABLE commandbus.process VALIDATE CONSTRAINT process_version_positive;
    ALTER TABLE commandbus.process_audit VALIDATE CONSTRAINT process_audit_outcome_known;
    ALTER TABLE commandbus.process_audit VALIDATE CONSTRAINT process_audit_data_with_outcome;
    ALTER TABLE commandbus.process_audit VALIDATE CONSTRAINT process_audit_compensates_another;

Revision ID: commandbus_0004
Revises: commandbus_0003
"""

import sqlalchemy as sa

from commandbus_process.migrations._change import Change

revision = "commandbus_0004"
down_revision = "commandbus_0003"
branch_labels = None
depends_on = None

kind = "expand"
works_with_code_since = "commandbus_0001"

# Do not use a name that PostgreSQL itself gives to a CHECK (table_column_check): hand-written tables may have that one.
CHECKS = {
    "process": {
        # The server prepares a CHECK again for each statement. IN would be nine expressions: 12 µs an update, instead
        # of 6.
        "process_status_known": "status = ANY ('{PENDING,IN_PROGRESS,WAITING,WAITING_FOR_TSQ,COMPENSATING,"
        "COMPLETED,COMPENSATED,FAILED,CANCELED}'::text[])",
        "process_version_positive": "version >= 1",
    },
    "process_audit": {
        "process_audit_outcome_known": "reply_outcome = ANY ('{SUCCESS,FAILED,CANCELED}'::text[])",
        # A JSON null counts as no data: other software may write it.
        "process_audit_data_with_outcome": "reply_outcome IS NOT NULL OR reply_data IS NULL "
        "OR reply_data = 'null'::jsonb",
        "process_audit_compensates_another": "compensates <> command_id",
    },
}

# One statement for both `upgrade` and `upgrade --sql`. The table is locked, so an empty table stays empty.
VALIDATE_IF_EMPTY = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM {{schema}}.{table}) THEN
        {validate};
    END IF;
END
$$
"""


def upgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process", "process_audit")
    change.op.add_column("process_audit", sa.Column("compensates", sa.Uuid), schema=change.schema)
    for table, checks in CHECKS.items():
        for name, condition in checks.items():
            change.op.create_check_constraint(name, table, condition, schema=change.schema, postgresql_not_valid=True)
        validate = ", ".join(f"VALIDATE CONSTRAINT {name}" for name in checks)
        change.execute(VALIDATE_IF_EMPTY.format(table=table, validate=f"ALTER TABLE {{schema}}.{table} {validate}"))


def downgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process", "process_audit")
    change.remove_guards()
    for table, checks in CHECKS.items():
        for name in checks:
            change.op.drop_constraint(name, table, schema=change.schema)
    change.op.drop_column("process_audit", "compensates", schema=change.schema)
