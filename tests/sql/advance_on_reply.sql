WITH held AS (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id
FROM commandbus.process
JOIN commandbus.process_audit AS step ON step.domain = commandbus.process.domain AND step.process_id = commandbus.process.process_id
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID AND commandbus.process.process_type = :key_process_type::VARCHAR AND commandbus.process.version = coalesce(:key_version::BIGINT, commandbus.process.version) AND (CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '')) = coalesce(:key_stamp::VARCHAR, CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '')) AND :key_state_version::INTEGER >= coalesce(commandbus.process.state_version, 1) AND step.command_id = :key_command_id::UUID AND step.reply_outcome IS NULL
FOR NO KEY UPDATE OF process, step), 
replied AS (UPDATE commandbus.process_audit
SET reply_outcome=:reply_outcome::VARCHAR, reply_data=CAST(:reply_data::VARCHAR AS JSONB), received_at=:received_at::TIMESTAMP WITH TIME ZONE
FROM held
WHERE commandbus.process_audit.domain = held.domain AND commandbus.process_audit.process_id = held.process_id AND commandbus.process_audit.command_id = :key_command_id::UUID
RETURNING commandbus.process_audit.domain, commandbus.process_audit.process_id), 
changed AS (UPDATE commandbus.process
SET status=:status::VARCHAR, current_step=:current_step::VARCHAR, state=CAST(:state::VARCHAR AS JSONB), error_code=:error_code::VARCHAR, error_message=:error_message::VARCHAR, updated_at=pg_catalog.now(), completed_at=:completed_at::TIMESTAMP WITH TIME ZONE, version=(commandbus.process.version + 1), deadline=:deadline::TIMESTAMP WITH TIME ZONE, state_version=:state_version::INTEGER
FROM replied
WHERE commandbus.process.domain = replied.domain AND commandbus.process.process_id = replied.process_id
RETURNING CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS written)
SELECT changed.written
FROM (SELECT 1) AS one_row
LEFT OUTER JOIN changed ON true
WHERE CASE WHEN (changed.written IS NOT NULL) THEN true ELSE CAST((SELECT 'only a part could be written'
FROM replied LIMIT 1) AS BOOLEAN) END
