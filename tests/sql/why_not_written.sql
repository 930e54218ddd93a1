SELECT commandbus.process.version, commandbus.process.process_type, pg_catalog.concat_ws(' ', commandbus.process.version, process.xmin, EXTRACT(epoch FROM commandbus.process.updated_at), commandbus.process.state_version) AS stamp, commandbus.process.state_version
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID
