SET search_path = pg_catalog;

CREATE SCHEMA IF NOT EXISTS "Ugly ""schema"".50%s :x é $$";

BEGIN;

CREATE TABLE "Ugly ""schema"".50%s :x é $$".commandbus_process_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT commandbus_process_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> commandbus_0001

CREATE SCHEMA IF NOT EXISTS "Ugly ""schema"".50%s :x é $$";

DO $x$
BEGIN
    IF to_regclass(format('%I.process', 'Ugly "schema".50%s :x é $$')) IS NOT NULL
            OR to_regclass(format('%I.process_audit', 'Ugly "schema".50%s :x é $$')) IS NOT NULL THEN
        RAISE EXCEPTION 'the tables of revision 0001 exist already'
            USING HINT = 'Adopt them: run "python -m commandbus_process.migrations adopt". Their rows are kept.';
    END IF;
END
$x$;

CREATE TABLE "Ugly ""schema"".50%s :x é $$".process (
    domain VARCHAR(255) NOT NULL, 
    process_id UUID NOT NULL, 
    process_type VARCHAR(255) NOT NULL, 
    status VARCHAR(50) DEFAULT 'PENDING' NOT NULL, 
    current_step VARCHAR(255), 
    state JSONB DEFAULT '{}'::jsonb NOT NULL, 
    error_code VARCHAR(255), 
    error_message TEXT, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    completed_at TIMESTAMP WITH TIME ZONE, 
    CONSTRAINT process_pkey PRIMARY KEY (domain, process_id)
);

CREATE INDEX idx_process_type ON "Ugly ""schema"".50%s :x é $$".process (domain, process_type);

CREATE INDEX idx_process_status ON "Ugly ""schema"".50%s :x é $$".process (domain, status);

CREATE INDEX idx_process_created ON "Ugly ""schema"".50%s :x é $$".process (created_at);

CREATE TABLE "Ugly ""schema"".50%s :x é $$".process_audit (
    id BIGSERIAL NOT NULL, 
    domain VARCHAR(255) NOT NULL, 
    process_id UUID NOT NULL, 
    step_name VARCHAR(255) NOT NULL, 
    command_id UUID NOT NULL, 
    command_type VARCHAR(255) NOT NULL, 
    command_data JSONB, 
    sent_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    reply_outcome VARCHAR(50), 
    reply_data JSONB, 
    received_at TIMESTAMP WITH TIME ZONE, 
    CONSTRAINT process_audit_pkey PRIMARY KEY (id), 
    CONSTRAINT process_audit_domain_process_id_fkey FOREIGN KEY(domain, process_id) REFERENCES "Ugly ""schema"".50%s :x é $$".process (domain, process_id)
);

CREATE INDEX idx_process_audit_process ON "Ugly ""schema"".50%s :x é $$".process_audit (domain, process_id);

CREATE INDEX idx_process_audit_command ON "Ugly ""schema"".50%s :x é $$".process_audit (command_id);

INSERT INTO "Ugly ""schema"".50%s :x é $$".commandbus_process_version (version_num) VALUES ('commandbus_0001') RETURNING "Ugly ""schema"".50%s :x é $$".commandbus_process_version.version_num;

COMMIT;

BEGIN;

-- Running upgrade commandbus_0001 -> commandbus_0002

SET LOCAL lock_timeout = '400ms';

LOCK TABLE "Ugly ""schema"".50%s :x é $$".process, "Ugly ""schema"".50%s :x é $$".process_audit IN ACCESS EXCLUSIVE MODE;

DO $x$
DECLARE
    groups bigint;
    listing text;
BEGIN
    IF EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.process_audit_new_command_key', 'Ugly "schema".50%s :x é $$')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE UNIQUE INDEX process_audit_new_command_key ON %I.process_audit USING btree (domain, process_id, command_id)', 'Ugly "schema".50%s :x é $$')
) THEN
        RETURN;  -- the key has refused them
    END IF;
    WITH duplicate AS (
        SELECT domain, process_id, command_id, array_agg(id ORDER BY id) AS ids
        FROM "Ugly ""schema"".50%s :x é $$".process_audit
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
$x$;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process ADD COLUMN version BIGINT DEFAULT 1 NOT NULL;

DO $x$
BEGIN
    EXECUTE (
        SELECT format('ALTER TABLE %I.process_audit DROP CONSTRAINT %I', 'Ugly "schema".50%s :x é $$', conname)
        FROM pg_catalog.pg_constraint
        WHERE conrelid = to_regclass(format('%I.process_audit', 'Ugly "schema".50%s :x é $$')) AND contype = 'p'
    );
END
$x$;

DO $x$
BEGIN
    IF EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.process_audit_new_pkey', 'Ugly "schema".50%s :x é $$')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE UNIQUE INDEX process_audit_new_pkey ON %I.process_audit USING btree (domain, process_id, id)', 'Ugly "schema".50%s :x é $$')
) THEN
        ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit
            ADD CONSTRAINT process_audit_pkey PRIMARY KEY USING INDEX process_audit_new_pkey;
    ELSE
        ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit
            ADD CONSTRAINT process_audit_pkey PRIMARY KEY (domain, process_id, id);
    END IF;
    IF EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.process_audit_new_command_key', 'Ugly "schema".50%s :x é $$')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE UNIQUE INDEX process_audit_new_command_key ON %I.process_audit USING btree (domain, process_id, command_id)', 'Ugly "schema".50%s :x é $$')
) THEN
        ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit
            ADD CONSTRAINT process_audit_command_key UNIQUE USING INDEX process_audit_new_command_key;
    ELSE
        ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit
            ADD CONSTRAINT process_audit_command_key UNIQUE (domain, process_id, command_id);
    END IF;
    IF NOT EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indexrelid = to_regclass(format('%I.idx_process_status_created', 'Ugly "schema".50%s :x é $$')) AND indisvalid
        AND pg_get_indexdef(indexrelid)
            = format('CREATE INDEX idx_process_status_created ON %I.process USING btree (domain, status, created_at, process_id)', 'Ugly "schema".50%s :x é $$')
) THEN
        CREATE INDEX idx_process_status_created ON "Ugly ""schema"".50%s :x é $$".process (domain, status, created_at, process_id);
    END IF;
END
$x$;

DROP INDEX IF EXISTS "Ugly ""schema"".50%s :x é $$".idx_process_status;

DROP INDEX IF EXISTS "Ugly ""schema"".50%s :x é $$".idx_process_audit_process;

DROP INDEX IF EXISTS "Ugly ""schema"".50%s :x é $$".idx_process_type;

DROP INDEX IF EXISTS "Ugly ""schema"".50%s :x é $$".idx_process_created;

DROP INDEX IF EXISTS "Ugly ""schema"".50%s :x é $$".idx_process_audit_command;

UPDATE "Ugly ""schema"".50%s :x é $$".commandbus_process_version SET version_num='commandbus_0002' WHERE "Ugly ""schema"".50%s :x é $$".commandbus_process_version.version_num = 'commandbus_0001';

COMMIT;

BEGIN;

-- Running upgrade commandbus_0002 -> commandbus_0003

SET LOCAL lock_timeout = '400ms';

LOCK TABLE "Ugly ""schema"".50%s :x é $$".process_audit IN ACCESS EXCLUSIVE MODE;

DO $x$
DECLARE
    torn bigint;
    listing text;
BEGIN
    IF EXISTS (
    SELECT FROM pg_catalog.pg_constraint
    WHERE conrelid = to_regclass(format('%I.process_audit', 'Ugly "schema".50%s :x é $$'))
        AND conname = 'process_audit_reply_check' AND convalidated
        AND pg_get_constraintdef(oid) = 'CHECK (((reply_outcome IS NULL) = (received_at IS NULL)))'
) THEN
        RETURN;  -- the CHECK has refused them
    END IF;
    WITH numbered AS (
        SELECT *, row_number() OVER (ORDER BY id) AS position
        FROM "Ugly ""schema"".50%s :x é $$".process_audit
        WHERE (reply_outcome IS NULL) <> (received_at IS NULL)
    )
    SELECT count(*),
           string_agg(
               format('domain %s, process %s, command %s: row with id %s has %s',
                      quote_literal(domain), process_id, command_id, id,
                      CASE WHEN received_at IS NULL THEN 'an outcome, but no time' ELSE 'a time, but no outcome' END),
               E'\n  ' ORDER BY position
           ) FILTER (WHERE position <= 20)
    INTO torn, listing
    FROM numbered;
    IF torn > 0 THEN
        RAISE EXCEPTION E'revision 0003 has changed nothing: % repl(ies) in process_audit have an outcome '
            'without a time or a time without an outcome. Complete or empty them, then upgrade '
            'again. The first 20 at most:\n  %', torn, listing;
    END IF;
END
$x$;

DO $x$
BEGIN
    IF NOT EXISTS (
    SELECT FROM pg_catalog.pg_constraint
    WHERE conrelid = to_regclass(format('%I.process_audit', 'Ugly "schema".50%s :x é $$'))
        AND conname = 'process_audit_reply_check' AND convalidated
        AND pg_get_constraintdef(oid) = 'CHECK (((reply_outcome IS NULL) = (received_at IS NULL)))'
) THEN
        ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit
            ADD CONSTRAINT process_audit_reply_check CHECK ((reply_outcome IS NULL) = (received_at IS NULL));
    END IF;
END
$x$;

UPDATE "Ugly ""schema"".50%s :x é $$".commandbus_process_version SET version_num='commandbus_0003' WHERE "Ugly ""schema"".50%s :x é $$".commandbus_process_version.version_num = 'commandbus_0002';

COMMIT;

BEGIN;

-- Running upgrade commandbus_0003 -> commandbus_0004

SET LOCAL lock_timeout = '400ms';

LOCK TABLE "Ugly ""schema"".50%s :x é $$".process, "Ugly ""schema"".50%s :x é $$".process_audit IN ACCESS EXCLUSIVE MODE;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit ADD COLUMN compensates UUID;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process ADD CONSTRAINT process_status_known CHECK (status = ANY ('{PENDING,IN_PROGRESS,WAITING,WAITING_FOR_TSQ,COMPENSATING,COMPLETED,COMPENSATED,FAILED,CANCELED}'::text[])) NOT VALID;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process ADD CONSTRAINT process_version_positive CHECK (version >= 1) NOT VALID;

DO $x$
BEGIN
    IF NOT EXISTS (SELECT FROM "Ugly ""schema"".50%s :x é $$".process) THEN
        ALTER TABLE "Ugly ""schema"".50%s :x é $$".process VALIDATE CONSTRAINT process_status_known, VALIDATE CONSTRAINT process_version_positive;
    END IF;
END
$x$;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit ADD CONSTRAINT process_audit_outcome_known CHECK (reply_outcome = ANY ('{SUCCESS,FAILED,CANCELED}'::text[])) NOT VALID;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit ADD CONSTRAINT process_audit_data_with_outcome CHECK (reply_outcome IS NOT NULL OR reply_data IS NULL OR reply_data = 'null'::jsonb) NOT VALID;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit ADD CONSTRAINT process_audit_compensates_another CHECK (compensates <> command_id) NOT VALID;

DO $x$
BEGIN
    IF NOT EXISTS (SELECT FROM "Ugly ""schema"".50%s :x é $$".process_audit) THEN
        ALTER TABLE "Ugly ""schema"".50%s :x é $$".process_audit VALIDATE CONSTRAINT process_audit_outcome_known, VALIDATE CONSTRAINT process_audit_data_with_outcome, VALIDATE CONSTRAINT process_audit_compensates_another;
    END IF;
END
$x$;

UPDATE "Ugly ""schema"".50%s :x é $$".commandbus_process_version SET version_num='commandbus_0004' WHERE "Ugly ""schema"".50%s :x é $$".commandbus_process_version.version_num = 'commandbus_0003';

COMMIT;

BEGIN;

-- Running upgrade commandbus_0004 -> commandbus_0005

SET LOCAL lock_timeout = '400ms';

LOCK TABLE "Ugly ""schema"".50%s :x é $$".process IN ACCESS EXCLUSIVE MODE;

ALTER TABLE "Ugly ""schema"".50%s :x é $$".process
    ADD COLUMN IF NOT EXISTS business_key varchar(255),
    ADD COLUMN IF NOT EXISTS deadline timestamptz,
    ADD COLUMN IF NOT EXISTS state_version integer;

COMMIT;

DROP INDEX CONCURRENTLY IF EXISTS "Ugly ""schema"".50%s :x é $$".idx_process_deadline;

CREATE INDEX CONCURRENTLY idx_process_deadline ON "Ugly ""schema"".50%s :x é $$".process USING btree (domain, status, deadline, process_id) WHERE (deadline IS NOT NULL);

DROP INDEX CONCURRENTLY IF EXISTS "Ugly ""schema"".50%s :x é $$".idx_process_business_key;

CREATE INDEX CONCURRENTLY idx_process_business_key ON "Ugly ""schema"".50%s :x é $$".process USING btree (domain, business_key) WHERE (business_key IS NOT NULL);

BEGIN;

UPDATE "Ugly ""schema"".50%s :x é $$".commandbus_process_version SET version_num='commandbus_0005' WHERE "Ugly ""schema"".50%s :x é $$".commandbus_process_version.version_num = 'commandbus_0004';

COMMIT;

RESET search_path;

