SELECT given_keys.position, CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS written
FROM pg_catalog.json_to_recordset(CAST(:keys::VARCHAR AS JSON)) AS given_keys(position INTEGER, domain VARCHAR(255), process_id UUID)
JOIN commandbus.process ON commandbus.process.domain = given_keys.domain AND commandbus.process.process_id = given_keys.process_id
