WITH seen AS MATERIALIZED (SELECT found.domain AS domain, found.process_id AS process_id, found.due AS due, found.sort_key AS sort_key
FROM ((SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id, :ended_before::TIMESTAMP WITH TIME ZONE > coalesce(commandbus.process.completed_at, commandbus.process.updated_at) AND commandbus.process.process_type = coalesce(:process_type::VARCHAR, commandbus.process.process_type) AS due, commandbus.process.created_at AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'CANCELED' AND commandbus.process.created_at < :created_before::TIMESTAMP WITH TIME ZONE
ORDER BY commandbus.process.created_at, commandbus.process.process_id LIMIT :limit::INTEGER) UNION ALL (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id, :ended_before::TIMESTAMP WITH TIME ZONE > coalesce(commandbus.process.completed_at, commandbus.process.updated_at) AND commandbus.process.process_type = coalesce(:process_type::VARCHAR, commandbus.process.process_type) AS due, commandbus.process.created_at AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'COMPENSATED' AND commandbus.process.created_at < :created_before::TIMESTAMP WITH TIME ZONE
ORDER BY commandbus.process.created_at, commandbus.process.process_id LIMIT :limit::INTEGER) UNION ALL (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id, :ended_before::TIMESTAMP WITH TIME ZONE > coalesce(commandbus.process.completed_at, commandbus.process.updated_at) AND commandbus.process.process_type = coalesce(:process_type::VARCHAR, commandbus.process.process_type) AS due, commandbus.process.created_at AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'COMPLETED' AND commandbus.process.created_at < :created_before::TIMESTAMP WITH TIME ZONE
ORDER BY commandbus.process.created_at, commandbus.process.process_id LIMIT :limit::INTEGER) UNION ALL (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id, :ended_before::TIMESTAMP WITH TIME ZONE > coalesce(commandbus.process.completed_at, commandbus.process.updated_at) AND commandbus.process.process_type = coalesce(:process_type::VARCHAR, commandbus.process.process_type) AS due, commandbus.process.created_at AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'FAILED' AND commandbus.process.created_at < :created_before::TIMESTAMP WITH TIME ZONE
ORDER BY commandbus.process.created_at, commandbus.process.process_id LIMIT :limit::INTEGER)) AS found
ORDER BY found.sort_key, found.process_id LIMIT :limit::INTEGER), held AS MATERIALIZED (SELECT commandbus.process.process_id AS process_id
FROM seen
JOIN commandbus.process ON seen.domain = commandbus.process.domain AND seen.process_id = commandbus.process.process_id
WHERE seen.due AND commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status IN ('CANCELED', 'COMPENSATED', 'COMPLETED', 'FAILED') AND :ended_before::TIMESTAMP WITH TIME ZONE > coalesce(commandbus.process.completed_at, commandbus.process.updated_at) AND commandbus.process.process_type = coalesce(:process_type::VARCHAR, commandbus.process.process_type) FOR UPDATE OF process SKIP LOCKED)
SELECT (SELECT pg_catalog.count(*) AS count_1
FROM seen) AS seen, (SELECT CAST(pg_catalog.to_json(last_seen.sort_key) AS TEXT) AS to_json_1
FROM (SELECT seen.sort_key AS sort_key, seen.process_id AS process_id
FROM seen
ORDER BY seen.sort_key DESC, seen.process_id DESC LIMIT 1) AS last_seen) AS last_key, (SELECT last_seen.process_id
FROM (SELECT seen.sort_key AS sort_key, seen.process_id AS process_id
FROM seen
ORDER BY seen.sort_key DESC, seen.process_id DESC LIMIT 1) AS last_seen) AS last_id, (SELECT pg_catalog.array_agg(held.process_id) AS array_agg_1
FROM held) AS held
