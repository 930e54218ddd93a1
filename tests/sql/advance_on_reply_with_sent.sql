WITH held AS (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id
FROM commandbus.process
JOIN commandbus.process_audit AS step ON step.domain = commandbus.process.domain AND step.process_id = commandbus.process.process_id
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID AND commandbus.process.process_type = :key_process_type::VARCHAR AND commandbus.process.version = coalesce(:key_version::BIGINT, commandbus.process.version) AND (CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '')) = coalesce(:key_stamp::VARCHAR, CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '')) AND :key_state_version::INTEGER >= coalesce(commandbus.process.state_version, 1) AND step.command_id = :key_command_id::UUID AND step.reply_outcome IS NULL AND NOT (EXISTS (SELECT 1
FROM pg_catalog.json_to_recordset(CAST(:sent::VARCHAR AS JSON)) AS given_sent(position INTEGER, step_name VARCHAR(255), command_id UUID, command_type VARCHAR(255), command_data JSONB, sent_at TIMESTAMP WITH TIME ZONE, reply_outcome VARCHAR(50), reply_data JSONB, received_at TIMESTAMP WITH TIME ZONE, compensates UUID)
WHERE (SELECT commandbus.process_audit.id
FROM commandbus.process_audit
WHERE commandbus.process_audit.domain = :key_domain::VARCHAR AND commandbus.process_audit.process_id = :key_process_id::UUID AND commandbus.process_audit.command_id = given_sent.command_id) IS NOT NULL))
FOR NO KEY UPDATE OF process, step), 
logged AS (INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, received_at, compensates)
SELECT held.domain AS domain, held.process_id AS process_id, given_sent.step_name AS step_name, given_sent.command_id AS command_id, given_sent.command_type AS command_type, given_sent.command_data AS command_data, given_sent.sent_at AS sent_at, given_sent.reply_outcome AS reply_outcome, given_sent.reply_data AS reply_data, given_sent.received_at AS received_at, given_sent.compensates AS compensates
FROM held
JOIN pg_catalog.json_to_recordset(CAST(:sent::VARCHAR AS JSON)) AS given_sent(position INTEGER, step_name VARCHAR(255), command_id UUID, command_type VARCHAR(255), command_data JSONB, sent_at TIMESTAMP WITH TIME ZONE, reply_outcome VARCHAR(50), reply_data JSONB, received_at TIMESTAMP WITH TIME ZONE, compensates UUID) ON true
ORDER BY given_sent.position
ON CONFLICT (domain, process_id, command_id) DO NOTHING
RETURNING commandbus.process_audit.domain, commandbus.process_audit.process_id), 
replied AS (UPDATE commandbus.process_audit
SET reply_outcome=:reply_outcome::VARCHAR, reply_data=CAST(:reply_data::VARCHAR AS JSONB), received_at=:received_at::TIMESTAMP WITH TIME ZONE
FROM held
WHERE commandbus.process_audit.domain = held.domain AND commandbus.process_audit.process_id = held.process_id AND commandbus.process_audit.command_id = :key_command_id::UUID AND (SELECT pg_catalog.count(*) AS count_1
FROM logged) = :sent_count::INTEGER
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
FROM logged LIMIT 1) AS BOOLEAN) END
