WITH held AS (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id, commandbus.process.status AS status
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID
FOR NO KEY UPDATE), 
payloads AS (UPDATE commandbus.process_audit
SET command_data=NULL, reply_data=NULL
FROM held
WHERE commandbus.process_audit.domain = held.domain AND commandbus.process_audit.process_id = held.process_id AND held.status IN ('CANCELED', 'COMPENSATED', 'COMPLETED', 'FAILED') AND (commandbus.process_audit.command_data IS NOT NULL OR commandbus.process_audit.reply_data IS NOT NULL)
RETURNING 1 AS one), 
erased AS (UPDATE commandbus.process
SET state='{}'::jsonb, error_message=NULL, version=(commandbus.process.version + 1), business_key=NULL
FROM held
WHERE commandbus.process.domain = held.domain AND commandbus.process.process_id = held.process_id AND held.status IN ('CANCELED', 'COMPENSATED', 'COMPLETED', 'FAILED') AND (commandbus.process.state != '{}'::jsonb OR commandbus.process.error_message IS NOT NULL OR commandbus.process.business_key IS NOT NULL)
RETURNING 1 AS one)
SELECT held.status, held.status IN ('CANCELED', 'COMPENSATED', 'COMPLETED', 'FAILED') AS is_ended, (EXISTS (SELECT payloads.one
FROM payloads)) OR (EXISTS (SELECT erased.one
FROM erased)) AS is_new
FROM held
