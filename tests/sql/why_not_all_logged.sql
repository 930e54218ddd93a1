SELECT given_steps.position, commandbus.process.process_id AS process_id, commandbus.process_audit.step_name, commandbus.process_audit.command_id, commandbus.process_audit.command_type, CAST(nullif(commandbus.process_audit.command_data, CAST('null' AS JSONB)) AS TEXT) AS command_data, CAST(pg_catalog.to_json(commandbus.process_audit.sent_at) AS TEXT) AS sent_at, commandbus.process_audit.reply_outcome, CAST(nullif(commandbus.process_audit.reply_data, CAST('null' AS JSONB)) AS TEXT) AS reply_data, CAST(pg_catalog.to_json(commandbus.process_audit.received_at) AS TEXT) AS received_at, commandbus.process_audit.compensates
FROM pg_catalog.json_to_recordset(CAST(:steps::VARCHAR AS JSON)) AS given_steps(position INTEGER, domain VARCHAR(255), process_id UUID, step_name VARCHAR(255), command_id UUID, command_type VARCHAR(255), command_data JSONB, sent_at TIMESTAMP WITH TIME ZONE, reply_outcome VARCHAR(50), reply_data JSONB, received_at TIMESTAMP WITH TIME ZONE, compensates UUID)
LEFT OUTER JOIN commandbus.process ON commandbus.process.domain = given_steps.domain AND commandbus.process.process_id = given_steps.process_id
LEFT OUTER JOIN commandbus.process_audit ON commandbus.process_audit.domain = given_steps.domain AND commandbus.process_audit.process_id = given_steps.process_id AND commandbus.process_audit.command_id = given_steps.command_id
WHERE coalesce(commandbus.process_audit.step_name IS NOT DISTINCT
FROM given_steps.step_name AND commandbus.process_audit.command_type IS NOT DISTINCT
FROM given_steps.command_type AND nullif(commandbus.process_audit.command_data, CAST('null' AS JSONB)) IS NOT DISTINCT
FROM given_steps.command_data AND commandbus.process_audit.compensates IS NOT DISTINCT
FROM given_steps.compensates AND (given_steps.reply_outcome IS NULL OR commandbus.process_audit.reply_outcome IS NOT DISTINCT
FROM given_steps.reply_outcome AND nullif(commandbus.process_audit.reply_data, CAST('null' AS JSONB)) IS NOT DISTINCT
FROM given_steps.reply_data), false) IS false
