SELECT commandbus.process.version, commandbus.process.process_type, pg_catalog.concat_ws(' ', commandbus.process.version, process.xmin, EXTRACT(epoch FROM commandbus.process.updated_at), commandbus.process.state_version) AS stamp, commandbus.process.state_version, CAST(pg_catalog.json_build_array(commandbus.process.version, commandbus.process.updated_at, pg_catalog.concat_ws(' ', commandbus.process.version, process.xmin, EXTRACT(epoch FROM commandbus.process.updated_at), commandbus.process.state_version)) AS TEXT) AS written, commandbus.process.status IS NOT DISTINCT
FROM :status::VARCHAR AND commandbus.process.current_step IS NOT DISTINCT
FROM :current_step::VARCHAR AND commandbus.process.state IS NOT DISTINCT
FROM CAST(:state::VARCHAR AS JSONB) AND commandbus.process.error_code IS NOT DISTINCT
FROM :error_code::VARCHAR AND commandbus.process.error_message IS NOT DISTINCT
FROM :error_message::VARCHAR AND commandbus.process.state_version IS NOT DISTINCT
FROM :state_version::INTEGER AND (commandbus.process.completed_at IS NULL) = (:completed_at::TIMESTAMP WITH TIME ZONE IS NULL) AND (commandbus.process.deadline IS NULL) = (:deadline::TIMESTAMP WITH TIME ZONE IS NULL) AS same
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID
