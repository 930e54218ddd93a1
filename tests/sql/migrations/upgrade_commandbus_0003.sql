SET search_path = pg_catalog;

UPDATE commandbus.commandbus_process_version SET version_num = 'commandbus_' || version_num WHERE version_num = ANY ('{0001,0002,0003,0004,0005}');

BEGIN;

-- Running upgrade commandbus_0002 -> commandbus_0003

SET LOCAL lock_timeout = '400ms';

LOCK TABLE commandbus.process_audit IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE
    torn bigint;
    listing text;
BEGIN
    IF EXISTS (
    SELECT FROM pg_catalog.pg_constraint
    WHERE conrelid = to_regclass(format('%I.process_audit', 'commandbus'))
        AND conname = 'process_audit_reply_check' AND convalidated
        AND pg_get_constraintdef(oid) = 'CHECK (((reply_outcome IS NULL) = (received_at IS NULL)))'
) THEN
        RETURN;  -- the CHECK has refused them
    END IF;
    WITH numbered AS (
        SELECT *, row_number() OVER (ORDER BY id) AS position
        FROM commandbus.process_audit
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
$$;

DO $$
BEGIN
    IF NOT EXISTS (
    SELECT FROM pg_catalog.pg_constraint
    WHERE conrelid = to_regclass(format('%I.process_audit', 'commandbus'))
        AND conname = 'process_audit_reply_check' AND convalidated
        AND pg_get_constraintdef(oid) = 'CHECK (((reply_outcome IS NULL) = (received_at IS NULL)))'
) THEN
        ALTER TABLE commandbus.process_audit
            ADD CONSTRAINT process_audit_reply_check CHECK ((reply_outcome IS NULL) = (received_at IS NULL));
    END IF;
END
$$;

UPDATE commandbus.commandbus_process_version SET version_num='commandbus_0003' WHERE commandbus.commandbus_process_version.version_num = 'commandbus_0002';

COMMIT;

RESET search_path;

