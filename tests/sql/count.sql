SELECT pg_catalog.count(*) AS count_1
FROM (SELECT found.sort_key AS sort_key
FROM ((SELECT commandbus.process.created_at AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'FAILED'
ORDER BY commandbus.process.created_at, commandbus.process.process_id LIMIT :limit::INTEGER) UNION ALL (SELECT commandbus.process.created_at AS sort_key
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.status = 'WAITING'
ORDER BY commandbus.process.created_at, commandbus.process.process_id LIMIT :limit::INTEGER)) AS found LIMIT :limit::INTEGER) AS counted
