INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, received_at, compensates)
SELECT given_steps.domain, given_steps.process_id, given_steps.step_name, given_steps.command_id, given_steps.command_type, given_steps.command_data, given_steps.sent_at, given_steps.reply_outcome, given_steps.reply_data, given_steps.received_at, given_steps.compensates
FROM pg_catalog.json_to_recordset(CAST(:steps::VARCHAR AS JSON)) AS given_steps(position INTEGER, domain VARCHAR(255), process_id UUID, step_name VARCHAR(255), command_id UUID, command_type VARCHAR(255), command_data JSONB, sent_at TIMESTAMP WITH TIME ZONE, reply_outcome VARCHAR(50), reply_data JSONB, received_at TIMESTAMP WITH TIME ZONE, compensates UUID)
JOIN commandbus.process ON commandbus.process.domain = given_steps.domain AND commandbus.process.process_id = given_steps.process_id
ORDER BY given_steps.position FOR KEY SHARE OF process
ON CONFLICT (domain, process_id, command_id) DO NOTHING
