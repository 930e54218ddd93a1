WITH saved AS (INSERT INTO commandbus.process (domain, process_id, process_type, status, current_step, state, error_code, error_message, created_at, updated_at, completed_at, business_key, deadline, state_version)
VALUES (:domain::VARCHAR, :process_id::UUID, :process_type::VARCHAR, :status::VARCHAR, :current_step::VARCHAR, CAST(:state::VARCHAR AS JSONB), :error_code::VARCHAR, :error_message::VARCHAR, :created_at::TIMESTAMP WITH TIME ZONE, :updated_at::TIMESTAMP WITH TIME ZONE, :completed_at::TIMESTAMP WITH TIME ZONE, :business_key::VARCHAR, :deadline::TIMESTAMP WITH TIME ZONE, :state_version::INTEGER)
ON CONFLICT (domain, process_id) DO NOTHING
RETURNING CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS written, commandbus.process.domain, commandbus.process.process_id), 
logged AS (INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, received_at, compensates)
SELECT saved.domain AS domain, saved.process_id AS process_id, given_sent.step_name AS step_name, given_sent.command_id AS command_id, given_sent.command_type AS command_type, given_sent.command_data AS command_data, given_sent.sent_at AS sent_at, given_sent.reply_outcome AS reply_outcome, given_sent.reply_data AS reply_data, given_sent.received_at AS received_at, given_sent.compensates AS compensates
FROM saved
JOIN pg_catalog.json_to_recordset(CAST(:sent::VARCHAR AS JSON)) AS given_sent(position INTEGER, step_name VARCHAR(255), command_id UUID, command_type VARCHAR(255), command_data JSONB, sent_at TIMESTAMP WITH TIME ZONE, reply_outcome VARCHAR(50), reply_data JSONB, received_at TIMESTAMP WITH TIME ZONE, compensates UUID) ON true
ORDER BY given_sent.position
RETURNING commandbus.process_audit.id)
SELECT saved.written
FROM saved
WHERE CASE WHEN ((SELECT pg_catalog.count(*) AS count_1
FROM logged) = :sent_count::INTEGER) THEN true ELSE CAST((SELECT 'only a part could be written'
FROM saved LIMIT 1) AS BOOLEAN) END
