WITH saved AS (INSERT INTO commandbus.process (domain, process_id, process_type, status, current_step, state, error_code, error_message, created_at, updated_at, completed_at, business_key, deadline, state_version)
VALUES (:domain::VARCHAR, :process_id::UUID, :process_type::VARCHAR, :status::VARCHAR, :current_step::VARCHAR, CAST(:state::VARCHAR AS JSONB), :error_code::VARCHAR, :error_message::VARCHAR, :created_at::TIMESTAMP WITH TIME ZONE, :updated_at::TIMESTAMP WITH TIME ZONE, :completed_at::TIMESTAMP WITH TIME ZONE, :business_key::VARCHAR, :deadline::TIMESTAMP WITH TIME ZONE, :state_version::INTEGER)
ON CONFLICT (domain, process_id) DO NOTHING
RETURNING CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS written, commandbus.process.domain, commandbus.process.process_id), 
logged AS (INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, received_at, compensates)
SELECT saved.domain AS domain, saved.process_id AS process_id, :sent_step_name::VARCHAR AS anon_1, :sent_command_id::UUID AS anon_2, :sent_command_type::VARCHAR AS anon_3, CAST(:sent_command_data::VARCHAR AS JSONB) AS anon_4, :sent_sent_at::TIMESTAMP WITH TIME ZONE AS anon_5, :sent_reply_outcome::VARCHAR AS anon_6, CAST(:sent_reply_data::VARCHAR AS JSONB) AS anon_7, :sent_received_at::TIMESTAMP WITH TIME ZONE AS anon_8, :sent_compensates::UUID AS anon_9
FROM saved
RETURNING commandbus.process_audit.id)
SELECT saved.written
FROM saved
WHERE CASE WHEN ((SELECT pg_catalog.count(*) AS count_1
FROM logged) = 1) THEN true ELSE CAST((SELECT 'only a part could be written'
FROM saved LIMIT 1) AS BOOLEAN) END
