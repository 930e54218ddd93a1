SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running upgrade commandbus_0004 -> commandbus_0005

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process IN ACCESS EXCLUSIVE MODE;

ALTER TABLE commandbus.process
    ADD COLUMN IF NOT EXISTS business_key varchar(255),
    ADD COLUMN IF NOT EXISTS deadline timestamptz,
    ADD COLUMN IF NOT EXISTS state_version integer;

COMMIT;

DROP INDEX CONCURRENTLY IF EXISTS commandbus.idx_process_deadline;

CREATE INDEX CONCURRENTLY idx_process_deadline ON commandbus.process USING btree (domain, status, deadline, process_id) WHERE (deadline IS NOT NULL);

DROP INDEX CONCURRENTLY IF EXISTS commandbus.idx_process_business_key;

CREATE INDEX CONCURRENTLY idx_process_business_key ON commandbus.process USING btree (domain, business_key) WHERE (business_key IS NOT NULL);

BEGIN;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0005' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0004';

COMMIT;

RESET search_path;

