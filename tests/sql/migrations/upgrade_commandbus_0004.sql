SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running upgrade commandbus_0003 -> commandbus_0004

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process, commandbus.process_audit IN ACCESS EXCLUSIVE MODE;

ALTER TABLE commandbus.process_audit ADD COLUMN compensates UUID;

ALTER TABLE commandbus.process ADD CONSTRAINT process_status_known CHECK (status = ANY ('{PENDING,IN_PROGRESS,WAITING,WAITING_FOR_TSQ,COMPENSATING,COMPLETED,COMPENSATED,FAILED,CANCELED}'::text[])) NOT VALID;

ALTER TABLE commandbus.process ADD CONSTRAINT process_version_positive CHECK (version >= 1) NOT VALID;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM commandbus.process) THEN
        ALTER TABLE commandbus.process VALIDATE CONSTRAINT process_status_known, VALIDATE CONSTRAINT process_version_positive;
    END IF;
END
$$;

ALTER TABLE commandbus.process_audit ADD CONSTRAINT process_audit_outcome_known CHECK (reply_outcome = ANY ('{SUCCESS,FAILED,CANCELED}'::text[])) NOT VALID;

ALTER TABLE commandbus.process_audit ADD CONSTRAINT process_audit_data_with_outcome CHECK (reply_outcome IS NOT NULL OR reply_data IS NULL OR reply_data = 'null'::jsonb) NOT VALID;

ALTER TABLE commandbus.process_audit ADD CONSTRAINT process_audit_compensates_another CHECK (compensates <> command_id) NOT VALID;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM commandbus.process_audit) THEN
        ALTER TABLE commandbus.process_audit VALIDATE CONSTRAINT process_audit_outcome_known, VALIDATE CONSTRAINT process_audit_data_with_outcome, VALIDATE CONSTRAINT process_audit_compensates_another;
    END IF;
END
$$;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0004' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0003';

COMMIT;

RESET search_path;

