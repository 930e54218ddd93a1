SELECT commandbus.process_audit.step_name
FROM commandbus.process_audit
WHERE commandbus.process_audit.domain = :key_domain::VARCHAR AND commandbus.process_audit.process_id = :key_process_id::UUID AND commandbus.process_audit.reply_outcome = 'SUCCESS'
ORDER BY commandbus.process_audit.id
