SELECT given_processes.position
FROM pg_catalog.json_to_recordset(CAST(:processes::VARCHAR AS JSON)) AS given_processes(position INTEGER, domain VARCHAR(255), process_id UUID)
JOIN commandbus.process ON commandbus.process.domain = given_processes.domain AND commandbus.process.process_id = given_processes.process_id
