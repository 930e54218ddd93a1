SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running downgrade commandbus_0002 -> commandbus_0001

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process, commandbus.process_audit IN ACCESS EXCLUSIVE MODE;

CREATE INDEX idx_process_audit_command ON commandbus.process_audit (command_id);

CREATE INDEX idx_process_created ON commandbus.process (created_at);

CREATE INDEX idx_process_type ON commandbus.process (domain, process_type);

CREATE INDEX idx_process_audit_process ON commandbus.process_audit (domain, process_id);

CREATE INDEX idx_process_status ON commandbus.process (domain, status);

DROP INDEX commandbus.idx_process_status_created;

ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_command_key;

DO $$
BEGIN
    EXECUTE (
        SELECT format('ALTER TABLE %I.process_audit DROP CONSTRAINT %I', 'commandbus', conname)
        FROM pg_catalog.pg_constraint
        WHERE conrelid = to_regclass(format('%I.process_audit', 'commandbus')) AND contype = 'p'
    );
END
$$;

ALTER TABLE commandbus.process_audit ADD CONSTRAINT process_audit_pkey PRIMARY KEY (id);

ALTER TABLE commandbus.process DROP COLUMN version;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0001' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0002';

COMMIT;

RESET search_path;

