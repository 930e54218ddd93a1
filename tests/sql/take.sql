WITH held AS (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID AND :key_stamp::VARCHAR = (CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), ''))
FOR NO KEY UPDATE SKIP LOCKED) UPDATE commandbus.process
SET updated_at=pg_catalog.now(), version=(commandbus.process.version + 1)
FROM held
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID AND commandbus.process.domain = held.domain AND commandbus.process.process_id = held.process_id
RETURNING CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS written
