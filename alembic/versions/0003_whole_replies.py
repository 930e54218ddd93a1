"""A CHECK for replies: an entry has both an outcome and a time, or neither.

Takes an ACCESS EXCLUSIVE lock on the audit trail until it commits, and reads it once. If somebody has added and
validated the CHECK before, nothing is read: see "Large tables" in docs/schema.md.

Revision ID: commandbus_0003
Revises: commandbus_0002
"""

from commandbus_process.migrations._change import Change

revision = "commandbus_0003"
down_revision = "commandbus_0002"
branch_labels = None
depends_on = None

# Code of revision 0001 goes on working if it writes outcome and time together: one alone is refused.
kind = "contract"
works_with_code_since = "commandbus_0001"

IS_READY = """
    SELECT FROM pg_catalog.pg_constraint
    WHERE conrelid = to_regclass(format('%I.process_audit', {name}))
        AND conname = 'process_audit_reply_check' AND convalidated
        AND pg_get_constraintdef(oid) = 'CHECK (((reply_outcome IS NULL) = (received_at IS NULL)))'
"""

# One statement for both `upgrade` and `upgrade --sql`.
REFUSE_TORN_REPLIES = f"""
DO $$
DECLARE
    torn bigint;
    listing text;
BEGIN
    IF EXISTS ({IS_READY}) THEN
        RETURN;  -- the CHECK has refused them
    END IF;
    WITH numbered AS (
        SELECT *, row_number() OVER (ORDER BY id) AS position
        FROM {{schema}}.process_audit
        WHERE (reply_outcome IS NULL) <> (received_at IS NULL)
    )
    SELECT count(*),
           string_agg(
               format('domain %s, process %s, command %s: row with id %s has %s',
                      quote_literal(domain), process_id, command_id, id,
                      CASE WHEN received_at IS NULL THEN 'an outcome, but no time' ELSE 'a time, but no outcome' END),
               E'\\n  ' ORDER BY position
           ) FILTER (WHERE position <= 20)
    INTO torn, listing
    FROM numbered;
    IF torn > 0 THEN
        RAISE EXCEPTION E'revision 0003 has changed nothing: % repl(ies) in process_audit have an outcome '
            'without a time or a time without an outcome. Complete or empty them, then upgrade '
            'again. The first 20 at most:\\n  %', torn, listing;
    END IF;
END
$$
"""

ADD_CHECK = f"""
DO $$
BEGIN
    IF NOT EXISTS ({IS_READY}) THEN
        ALTER TABLE {{schema}}.process_audit
            ADD CONSTRAINT process_audit_reply_check CHECK ((reply_outcome IS NULL) = (received_at IS NULL));
    END IF;
END
$$
"""


def upgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process_audit")
    change.execute(REFUSE_TORN_REPLIES)
    change.execute(ADD_CHECK)


def downgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process_audit")
    change.op.drop_constraint("process_audit_reply_check", "process_audit", schema=change.schema)
