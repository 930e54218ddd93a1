INSERT INTO commandbus.process (domain, process_id, process_type, status, current_step, state, error_code, error_message, created_at, updated_at, completed_at)
VALUES (:domain::VARCHAR, :process_id::UUID, :process_type::VARCHAR, :status::VARCHAR, :current_step::VARCHAR, CAST(:state::VARCHAR AS JSONB), :error_code::VARCHAR, :error_message::VARCHAR, :created_at::TIMESTAMP WITH TIME ZONE, :updated_at::TIMESTAMP WITH TIME ZONE, :completed_at::TIMESTAMP WITH TIME ZONE)
ON CONFLICT (domain, process_id) DO NOTHING
RETURNING CAST(pg_catalog.json_build_array(commandbus.process.version, commandbus.process.updated_at, pg_catalog.concat_ws(' ', commandbus.process.version, process.xmin, EXTRACT(epoch FROM commandbus.process.updated_at))) AS TEXT) AS written
