WITH held AS (SELECT commandbus.process.domain AS domain, commandbus.process.process_id AS process_id
FROM commandbus.process
WHERE commandbus.process.domain = :key_domain::VARCHAR AND commandbus.process.process_id = :key_process_id::UUID FOR KEY SHARE) INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, sent_at, reply_outcome, reply_data, received_at, compensates)
SELECT held.domain, held.process_id, :step_name::VARCHAR AS anon_1, :command_id::UUID AS anon_2, :command_type::VARCHAR AS anon_3, CAST(:command_data::VARCHAR AS JSONB) AS anon_4, :sent_at::TIMESTAMP WITH TIME ZONE AS anon_5, :reply_outcome::VARCHAR AS anon_6, CAST(:reply_data::VARCHAR AS JSONB) AS anon_7, :received_at::TIMESTAMP WITH TIME ZONE AS anon_8, :compensates::UUID AS anon_9
FROM held
ON CONFLICT (domain, process_id, command_id) DO NOTHING
RETURNING 1
