SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running downgrade commandbus_0005 -> commandbus_0004

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process, commandbus.process_audit IN ACCESS EXCLUSIVE MODE;

DROP FUNCTION IF EXISTS commandbus.guard_process() CASCADE;

DROP FUNCTION IF EXISTS commandbus.guard_process_audit() CASCADE;

ALTER TABLE commandbus.process DROP COLUMN state_version;

ALTER TABLE commandbus.process DROP COLUMN deadline;

ALTER TABLE commandbus.process DROP COLUMN business_key;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0004' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0005';

COMMIT;

RESET search_path;

