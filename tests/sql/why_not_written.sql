SELECT commandbus.process.version, commandbus.process.process_type, CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS stamp, commandbus.process.state_version
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID
