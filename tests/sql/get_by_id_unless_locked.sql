SELECT CAST(pg_catalog.json_build_array(commandbus.process.domain, commandbus.process.process_type, commandbus.process.status, commandbus.process.current_step, commandbus.process.error_code, commandbus.process.error_message, commandbus.process.created_at, commandbus.process.updated_at, commandbus.process.completed_at, commandbus.process.version, commandbus.process.business_key, commandbus.process.deadline, pg_catalog.concat_ws(' ', commandbus.process.version, process.xmin, EXTRACT(epoch FROM commandbus.process.updated_at))) AS TEXT) AS fields, CAST(commandbus.process.state AS TEXT) AS state
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID
FOR NO KEY UPDATE SKIP LOCKED
