SELECT commandbus.process.domain, commandbus.process.process_id, commandbus.process.process_type, commandbus.process.status, commandbus.process.current_step, CAST(commandbus.process.state AS TEXT) AS state, commandbus.process.error_code, commandbus.process.error_message, CAST(pg_catalog.to_json(commandbus.process.created_at) AS TEXT) AS created_at, CAST(pg_catalog.to_json(commandbus.process.updated_at) AS TEXT) AS updated_at, CAST(pg_catalog.to_json(commandbus.process.completed_at) AS TEXT) AS completed_at, commandbus.process.version, commandbus.process.business_key, CAST(pg_catalog.to_json(commandbus.process.deadline) AS TEXT) AS deadline, commandbus.process.state_version, CAST(commandbus.process.version AS TEXT) || ' ' || CAST(process.xmin AS TEXT) || ' ' || pg_catalog.encode(pg_catalog.timestamptz_send(commandbus.process.updated_at), 'hex') || coalesce(' ' || CAST(commandbus.process.state_version AS TEXT), '') AS stamp
FROM ((SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id, commandbus.process.deadline AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'FAILED' AND commandbus.process.deadline < :deadline_before::TIMESTAMP WITH TIME ZONE
ORDER BY commandbus.process.deadline, commandbus.process.process_id LIMIT (SELECT NULL::bigint)) UNION ALL (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id, commandbus.process.deadline AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'WAITING' AND commandbus.process.deadline < :deadline_before::TIMESTAMP WITH TIME ZONE
ORDER BY commandbus.process.deadline, commandbus.process.process_id LIMIT (SELECT NULL::bigint))) AS found
JOIN commandbus.process ON found.domain = commandbus.process.domain AND found.process_id = commandbus.process.process_id
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status IN ('FAILED', 'WAITING') AND commandbus.process.deadline < :deadline_before::TIMESTAMP WITH TIME ZONE
ORDER BY found.sort_key, found.process_id LIMIT :limit::INTEGER
FOR NO KEY UPDATE OF process SKIP LOCKED
