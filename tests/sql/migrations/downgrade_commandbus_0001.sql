SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running downgrade commandbus_0001 -> 

DROP TABLE commandbus.process_audit;

DROP TABLE commandbus.process;

DELETE FROM commandbus.commandbus_process_version WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0001';

COMMIT;

RESET search_path;

