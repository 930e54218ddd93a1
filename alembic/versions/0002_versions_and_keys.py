"""What the repository needs: versions, keys that contain the process, one entry a command, indexes for its queries.

Takes an ACCESS EXCLUSIVE lock on both tables until it commits. Adding `version` does not rewrite the table. Building
each new key and the index reads the table once. An index that somebody has built before is used instead, so that
nothing is read: see "Large tables" in docs/schema.md.

Revision ID: commandbus_0002
Revises: commandbus_0001
"""

import sqlalchemy as sa

from commandbus_process.migrations._change import Change

revision = "commandbus_0002"
down_revision = "commandbus_0001"
branch_labels = None
depends_on = None

# Code of revision 0001 goes on working if it logs each command once: a second time is refused.
kind = "contract"
works_with_code_since = "commandbus_0001"

# The indexes that a user can build concurrently before, and what they must be.
IS_READY = """
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.{index}', {{name}})) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE {unique}INDEX {index} ON %I.{table} USING btree ({columns})', {{name}})
"""
NEW_PRIMARY_KEY = IS_READY.format(
    index="process_audit_new_pkey", unique="UNIQUE ", table="process_audit", columns="domain, process_id, id"
)
NEW_COMMAND_KEY = IS_READY.format(
    index="process_audit_new_command_key",
    unique="UNIQUE ",
    table="process_audit",
    columns="domain, process_id, command_id",
)
NEW_INDEX = IS_READY.format(
    index="idx_process_status_created", unique="", table="process", columns="domain, status, created_at, process_id"
)

# One statement for both `upgrade` and `upgrade --sql`.
REFUSE_DUPLICATES = f"""
DO $$
DECLARE
    groups bigint;
    listing text;
BEGIN
    IF EXISTS ({NEW_COMMAND_KEY}) THEN
        RETURN;  -- the key has refused them
    END IF;
    WITH duplicate AS (
        SELECT domain, process_id, command_id, array_agg(id ORDER BY id) AS ids
        FROM {{schema}}.process_audit
        GROUP BY domain, process_id, command_id
        HAVING count(*) > 1
    ), numbered AS (
        SELECT *, row_number() OVER (ORDER BY domain, process_id, command_id) AS position FROM duplicate
    )
    SELECT count(*),
           string_agg(
               format('domain %s, process %s, command %s: rows with id %s',
                      quote_literal(domain), process_id, command_id, array_to_string(ids, ', ')),
               E'\\n  ' ORDER BY position
           ) FILTER (WHERE position <= 20)
    INTO groups, listing
    FROM numbered;
    IF groups > 0 THEN
        RAISE EXCEPTION E'revision 0002 has changed nothing: % command(s) are logged more than once in '
            'process_audit. Keep one row of each, then upgrade again. The first 20 at most:\\n  %',
            groups, listing;
    END IF;
END
$$
"""

# The primary key may have any name, because hand-written SQL created it.
DROP_PRIMARY_KEY = """
DO $$
BEGIN
    EXECUTE (
        SELECT format('ALTER TABLE %I.process_audit DROP CONSTRAINT %I', {name}, conname)
        FROM pg_catalog.pg_constraint
        WHERE conrelid = to_regclass(format('%I.process_audit', {name})) AND contype = 'p'
    );
END
$$
"""

ADD_KEYS = f"""
DO $$
BEGIN
    IF EXISTS ({NEW_PRIMARY_KEY}) THEN
        ALTER TABLE {{schema}}.process_audit
            ADD CONSTRAINT process_audit_pkey PRIMARY KEY USING INDEX process_audit_new_pkey;
    ELSE
        ALTER TABLE {{schema}}.process_audit
            ADD CONSTRAINT process_audit_pkey PRIMARY KEY (domain, process_id, id);
    END IF;
    IF EXISTS ({NEW_COMMAND_KEY}) THEN
        ALTER TABLE {{schema}}.process_audit
            ADD CONSTRAINT process_audit_command_key UNIQUE USING INDEX process_audit_new_command_key;
    ELSE
        ALTER TABLE {{schema}}.process_audit
            ADD CONSTRAINT process_audit_command_key UNIQUE (domain, process_id, command_id);
    END IF;
    IF NOT EXISTS ({NEW_INDEX}) THEN
        CREATE INDEX idx_process_status_created ON {{schema}}.process (domain, status, created_at, process_id);
    END IF;
END
$$
"""


def upgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process", "process_audit")
    change.execute(REFUSE_DUPLICATES)
    change.op.add_column(
        "process",
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        schema=change.schema,
    )
    change.execute(DROP_PRIMARY_KEY)
    change.execute(ADD_KEYS)
    # A prefix of the new index, or of the new primary key, replaces these two.
    drop_index(change, "idx_process_status", "process")
    drop_index(change, "idx_process_audit_process", "process_audit")
    # No query of the repository uses these three. idx_process_created even misleads the planner: it then reads the
    # table in the order of creation until it has found enough rows of one status.
    drop_index(change, "idx_process_type", "process")
    drop_index(change, "idx_process_created", "process")
    drop_index(change, "idx_process_audit_command", "process_audit")


def downgrade(change: Change | None = None) -> None:
    change = Change.of(change)
    change.lock_tables("process", "process_audit")
    change.op.create_index("idx_process_audit_command", "process_audit", ["command_id"], schema=change.schema)
    change.op.create_index("idx_process_created", "process", ["created_at"], schema=change.schema)
    change.op.create_index("idx_process_type", "process", ["domain", "process_type"], schema=change.schema)
    change.op.create_index("idx_process_audit_process", "process_audit", ["domain", "process_id"], schema=change.schema)
    change.op.create_index("idx_process_status", "process", ["domain", "status"], schema=change.schema)
    change.op.drop_index("idx_process_status_created", "process", schema=change.schema)
    change.op.drop_constraint("process_audit_command_key", "process_audit", schema=change.schema)
    change.execute(DROP_PRIMARY_KEY)
    change.op.create_primary_key("process_audit_pkey", "process_audit", ["id"], schema=change.schema)
    change.op.drop_column("process", "version", schema=change.schema)


def drop_index(change: Change, name: str, table: str) -> None:
    # IF EXISTS: hand-written tables may lack the index.
    change.op.drop_index(name, table, schema=change.schema, if_exists=True)
