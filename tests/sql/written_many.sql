SELECT given_keys.position, CAST(pg_catalog.json_build_array(commandbus.process.version, commandbus.process.updated_at, pg_catalog.concat_ws(' ', commandbus.process.version, process.xmin, EXTRACT(epoch FROM commandbus.process.updated_at), commandbus.process.state_version)) AS TEXT) AS written
FROM pg_catalog.json_to_recordset(CAST(:keys::VARCHAR AS JSON)) AS given_keys(position INTEGER, domain VARCHAR(255), process_id UUID)
JOIN commandbus.process ON commandbus.process.domain = given_keys.domain AND commandbus.process.process_id = given_keys.process_id
