SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running downgrade commandbus_0003 -> commandbus_0002

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process_audit IN ACCESS EXCLUSIVE MODE;

ALTER TABLE commandbus.process_audit DROP CONSTRAINT process_audit_reply_check;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0002' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0003';

COMMIT;

RESET search_path;

