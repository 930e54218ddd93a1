UPDATE commandbus.process_audit
SET reply_outcome=:reply_outcome::VARCHAR, reply_data=CAST(:reply_data::VARCHAR AS JSONB), received_at=:received_at::TIMESTAMP WITH TIME ZONE
WHERE commandbus.process_audit.domain = :key_domain::VARCHAR AND commandbus.process_audit.process_id = :key_process_id::UUID AND commandbus.process_audit.command_id = :key_command_id::UUID AND commandbus.process_audit.reply_outcome IS NULL
