WITH held AS (SELECT given_steps.position AS position, given_steps.domain AS domain, given_steps.process_id AS process_id, given_steps.step_name AS step_name, given_steps.command_id AS command_id, given_steps.command_type AS command_type, given_steps.command_data AS command_data, given_steps.sent_at AS sent_at, given_steps.reply_outcome AS reply_outcome, given_steps.reply_data AS reply_data, given_steps.received_at AS received_at, given_steps.compensates AS compensates
FROM pg_catalog.json_to_recordset(CAST(:steps::VARCHAR AS JSON)) AS given_steps(position INTEGER, domain VARCHAR(255), process_id UUID, step_name VARCHAR(255), command_id UUID, command_type VARCHAR(255), command_data JSONB, sent_at TIMESTAMP WITH TIME ZONE, reply_outcome VARCHAR(50), reply_data JSONB, received_at TIMESTAMP WITH TIME ZONE, compensates UUID)
JOIN commandbus.process ON commandbus.process.domain = given_steps.domain AND commandbus.process.process_id = given_steps.process_id
ORDER BY given_steps.position FOR KEY SHARE OF process), 
logged AS (INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, received_at, compensates)
SELECT held.domain AS domain, held.process_id AS process_id, held.step_name AS step_name, held.command_id AS command_id, held.command_type AS command_type, held.command_data AS command_data, held.sent_at AS sent_at, held.reply_outcome AS reply_outcome, held.reply_data AS reply_data, held.received_at AS received_at, held.compensates AS compensates
FROM held
ORDER BY held.position
ON CONFLICT (domain, process_id, command_id) DO NOTHING
RETURNING 1)
SELECT pg_catalog.count(*) AS count_1
FROM logged
