UPDATE commandbus.process
SET updated_at=pg_catalog.now(), version=(commandbus.process.version + 1)
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = ANY (:ids::UUID[]) AND (CAST(commandbus.process.process_id AS TEXT) || CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex')) = ANY (:found::TEXT[])
RETURNING commandbus.process.process_id, CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') AS stamp
