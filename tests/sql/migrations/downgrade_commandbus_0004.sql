SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running downgrade commandbus_0004 -> commandbus_0003

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process, commandbus.process_audit IN ACCESS EXCLUSIVE MODE;

DROP FUNCTION IF EXISTS commandbus.guard_process() CASCADE;

DROP FUNCTION IF EXISTS commandbus.guard_process_audit() CASCADE;

ALTER TABLE commandbus.process DROP CONSTRAINT process_status_known;

ALTER TABLE commandbus.process DROP CONSTRAINT process_version_positive;

ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_outcome_known;

ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_data_with_outcome;

ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_compensates_another;

ALTER TABLE commandbus.process_audit DROP COLUMN compensates;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0003' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0004';

COMMIT;

RESET search_path;

