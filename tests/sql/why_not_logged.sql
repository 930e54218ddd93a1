SELECT commandbus.process_audit.step_name, commandbus.process_audit.command_id, commandbus.process_audit.command_type, CAST(nullif(commandbus.process_audit.command_data, CAST('null' AS JSONB)) AS TEXT) AS command_data, CAST(pg_catalog.to_json(commandbus.process_audit.sent_at) AS TEXT) AS sent_at, commandbus.process_audit.reply_outcome, CAST(nullif(commandbus.process_audit.reply_data, CAST('null' AS JSONB)) AS TEXT) AS reply_data, CAST(pg_catalog.to_json(commandbus.process_audit.received_at) AS TEXT) AS received_at, commandbus.process_audit.compensates, commandbus.process_audit.step_name IS NOT DISTINCT
FROM :step_name::VARCHAR AND commandbus.process_audit.command_type IS NOT DISTINCT
FROM :command_type::VARCHAR AND nullif(commandbus.process_audit.command_data, CAST('null' AS JSONB)) IS NOT DISTINCT
FROM CAST(:command_data::VARCHAR AS JSONB) AND commandbus.process_audit.compensates IS NOT DISTINCT
FROM :compensates::UUID AND (:reply_outcome::VARCHAR IS NULL OR commandbus.process_audit.reply_outcome IS NOT DISTINCT
FROM :reply_outcome::VARCHAR AND nullif(commandbus.process_audit.reply_data, CAST('null' AS JSONB)) IS NOT DISTINCT
FROM CAST(:reply_data::VARCHAR AS JSONB)) AS same
FROM commandbus.process
LEFT OUTER JOIN commandbus.process_audit ON commandbus.process_audit.domain = commandbus.process.domain AND commandbus.process_audit.process_id = commandbus.process.process_id AND commandbus.process_audit.command_id = :key_command_id::UUID
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID
