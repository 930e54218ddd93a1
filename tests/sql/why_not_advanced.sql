SELECT commandbus.process.version, commandbus.process.process_type, CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS stamp, commandbus.process.state_version, commandbus.process.status IS NOT DISTINCT
FROM :status::VARCHAR AND commandbus.process.current_step IS NOT DISTINCT
FROM :current_step::VARCHAR AND commandbus.process.state IS NOT DISTINCT
FROM CAST(:state::VARCHAR AS JSONB) AND commandbus.process.error_code IS NOT DISTINCT
FROM :error_code::VARCHAR AND commandbus.process.error_message IS NOT DISTINCT
FROM :error_message::VARCHAR AND commandbus.process.state_version IS NOT DISTINCT
FROM :state_version::INTEGER AND (commandbus.process.completed_at IS NULL) = (:completed_at::TIMESTAMP WITH TIME ZONE IS NULL) AND (commandbus.process.deadline IS NULL) = (:deadline::TIMESTAMP WITH TIME ZONE IS NULL) AS same
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID
