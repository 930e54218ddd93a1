WITH given AS (SELECT given_processes.position AS position, given_processes.domain AS domain, given_processes.process_id AS process_id, given_processes.process_type AS process_type, given_processes.status AS status, given_processes.current_step AS current_step, given_processes.state AS state, given_processes.error_code AS error_code, given_processes.error_message AS error_message, given_processes.created_at AS created_at, given_processes.updated_at AS updated_at, given_processes.completed_at AS completed_at, given_processes.business_key AS business_key, given_processes.deadline AS deadline, given_processes.state_version AS state_version
FROM pg_catalog.json_to_recordset(CAST(:processes::VARCHAR AS JSON)) AS given_processes(position INTEGER, domain VARCHAR(255), process_id UUID, process_type VARCHAR(255), status VARCHAR(50), current_step VARCHAR(255), state JSONB, error_code VARCHAR(255), error_message TEXT, created_at TIMESTAMP WITH TIME ZONE, updated_at TIMESTAMP WITH TIME ZONE, completed_at TIMESTAMP WITH TIME ZONE, business_key VARCHAR(255), deadline TIMESTAMP WITH TIME ZONE, state_version INTEGER)), 
saved AS (INSERT INTO commandbus.process (domain, process_id, process_type, status, current_step, state, error_code, error_message, created_at, updated_at, completed_at, business_key, deadline, state_version)
SELECT given.domain AS domain, given.process_id AS process_id, given.process_type AS process_type, given.status AS status, given.current_step AS current_step, given.state AS state, given.error_code AS error_code, given.error_message AS error_message, given.created_at AS created_at, given.updated_at AS updated_at, given.completed_at AS completed_at, given.business_key AS business_key, given.deadline AS deadline, given.state_version AS state_version
FROM given
ORDER BY given.position
ON CONFLICT (domain, process_id) DO NOTHING
RETURNING commandbus.process.domain, commandbus.process.process_id)
SELECT given.position
FROM given
WHERE NOT (EXISTS (SELECT 1
FROM saved
WHERE saved.domain = given.domain AND saved.process_id = given.process_id))
ORDER BY given.position
