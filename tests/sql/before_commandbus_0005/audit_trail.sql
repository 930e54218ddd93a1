SELECT commandbus.process_audit.step_name, commandbus.process_audit.command_id, commandbus.process_audit.command_type, CAST(nullif(commandbus.process_audit.command_data, CAST('null' AS JSONB)) AS TEXT) AS command_data, CAST(pg_catalog.to_json(commandbus.process_audit.sent_at) AS TEXT) AS sent_at, commandbus.process_audit.reply_outcome, CAST(nullif(commandbus.process_audit.reply_data, CAST('null' AS JSONB)) AS TEXT) AS reply_data, CAST(pg_catalog.to_json(commandbus.process_audit.received_at) AS TEXT) AS received_at, commandbus.process_audit.compensates
FROM commandbus.process_audit
WHERE commandbus.process_audit.domain = :key_domain::VARCHAR AND commandbus.process_audit.process_id = :key_process_id::UUID
ORDER BY commandbus.process_audit.sent_at, commandbus.process_audit.id
