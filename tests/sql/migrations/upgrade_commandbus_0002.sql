SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running upgrade commandbus_0001 -> commandbus_0002

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process, commandbus.process_audit IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE
    groups bigint;
    listing text;
BEGIN
    IF EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.process_audit_new_command_key', 'commandbus')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE UNIQUE INDEX process_audit_new_command_key ON %I.process_audit USING btree (domain, process_id, command_id)', 'commandbus')
) THEN
        RETURN;  -- the key has refused them
    END IF;
    WITH duplicate AS (
        SELECT domain, process_id, command_id, array_agg(id ORDER BY id) AS ids
        FROM commandbus.process_audit
        GROUP BY domain, process_id, command_id
        HAVING count(*) > 1
    ), numbered AS (
        SELECT *, row_number() OVER (ORDER BY domain, process_id, command_id) AS position FROM duplicate
    )
    SELECT count(*),
           string_agg(
               format('domain %s, process %s, command %s: rows with id %s',
                      quote_literal(domain), process_id, command_id, array_to_string(ids, ', ')),
               E'\n  ' ORDER BY position
           ) FILTER (WHERE position <= 20)
    INTO groups, listing
    FROM numbered;
    IF groups > 0 THEN
        RAISE EXCEPTION E'revision 0002 has changed nothing: % command(s) are logged more than once in '
            'process_audit. Keep one row of each, then upgrade again. The first 20 at most:\n  %',
            groups, listing;
    END IF;
END
$$;

ALTER TABLE commandbus.process ADD COLUMN version BIGINT DEFAULT 1 NOT NULL;

DO $$
BEGIN
    EXECUTE (
        SELECT format('ALTER TABLE %I.process_audit DROP CONSTRAINT %I', 'commandbus', conname)
        FROM pg_catalog.pg_constraint
        WHERE conrelid = to_regclass(format('%I.process_audit', 'commandbus')) AND contype = 'p'
    );
END
$$;

DO $$
BEGIN
    IF EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.process_audit_new_pkey', 'commandbus')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE UNIQUE INDEX process_audit_new_pkey ON %I.process_audit USING btree (domain, process_id, id)', 'commandbus')
) THEN
        ALTER TABLE commandbus.process_audit
            ADD CONSTRAINT process_audit_pkey PRIMARY KEY USING INDEX process_audit_new_pkey;
    ELSE
        ALTER TABLE commandbus.process_audit
            ADD CONSTRAINT process_audit_pkey PRIMARY KEY (domain, process_id, id);
    END IF;
    IF EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.process_audit_new_command_key', 'commandbus')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE UNIQUE INDEX process_audit_new_command_key ON %I.process_audit USING btree (domain, process_id, command_id)', 'commandbus')
) THEN
        ALTER TABLE commandbus.process_audit
            ADD CONSTRAINT process_audit_command_key UNIQUE USING INDEX process_audit_new_command_key;
    ELSE
        ALTER TABLE commandbus.process_audit
            ADD CONSTRAINT process_audit_command_key UNIQUE (domain, process_id, command_id);
    END IF;
    IF NOT EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.idx_process_status_created', 'commandbus')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE INDEX idx_process_status_created ON %I.process USING btree (domain, status, created_at, process_id)', 'commandbus')
) THEN
        CREATE INDEX idx_process_status_created ON commandbus.process (domain, status, created_at, process_id);
    END IF;
END
$$;

DROP INDEX IF EXISTS commandbus.idx_process_status;

DROP INDEX IF EXISTS commandbus.idx_process_audit_process;

DROP INDEX IF EXISTS commandbus.idx_process_type;

DROP INDEX IF EXISTS commandbus.idx_process_created;

DROP INDEX IF EXISTS commandbus.idx_process_audit_command;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0002' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0001';

COMMIT;

RESET search_path;

