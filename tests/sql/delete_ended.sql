WITH due AS MATERIALIZED (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = ANY (:process_ids::UUID[]) AND commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status IN ('CANCELED', 'COMPENSATED', 'COMPLETED', 'FAILED') AND :ended_before::TIMESTAMP WITH TIME ZONE > coalesce(commandbus.process.completed_at, commandbus.process.updated_at) AND commandbus.process.process_type = coalesce(:process_type::VARCHAR, commandbus.process.process_type) FOR UPDATE), 
deleted AS (DELETE
FROM commandbus.process USING due
WHERE commandbus.process.domain = due.domain AND commandbus.process.process_id = due.process_id
RETURNING 1 AS one), 
deleted_steps AS (DELETE
FROM commandbus.process_audit USING due
WHERE commandbus.process_audit.domain = due.domain AND commandbus.process_audit.process_id = due.process_id
RETURNING 1 AS one)
SELECT (SELECT pg_catalog.count(*) AS count_1
FROM deleted) AS processes, (SELECT pg_catalog.count(*) AS count_1
FROM deleted_steps) AS steps
