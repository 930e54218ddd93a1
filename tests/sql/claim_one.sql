SELECT commandbus.process.domain, commandbus.process.process_id, commandbus.process.process_type, commandbus.process.status, commandbus.process.current_step, CAST(commandbus.process.state AS TEXT) AS state, commandbus.process.error_code, commandbus.process.error_message, CAST(pg_catalog.to_json(commandbus.process.created_at) AS TEXT) AS created_at, CAST(pg_catalog.to_json(commandbus.process.updated_at) AS TEXT) AS updated_at, CAST(pg_catalog.to_json(commandbus.process.completed_at) AS TEXT) AS completed_at, commandbus.process.version, pg_catalog.concat_ws(' ', commandbus.process.version, process.xmin, EXTRACT(epoch FROM commandbus.process.updated_at)) AS stamp
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'WAITING'
ORDER BY commandbus.process.created_at, commandbus.process.process_id LIMIT :limit::INTEGER
FOR NO KEY UPDATE OF process SKIP LOCKED
