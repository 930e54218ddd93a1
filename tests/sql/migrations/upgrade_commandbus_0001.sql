SET search_path = pg_catalog;

CREATE SCHEMA IF NOT EXISTS commandbus;

BEGIN;

CREATE TABLE commandbus.commandbus_process_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT commandbus_process_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> commandbus_0001

CREATE SCHEMA IF NOT EXISTS commandbus;

DO $$
BEGIN
    IF to_regclass(format('%I.process', 'commandbus')) IS NOT NULL
            OR to_regclass(format('%I.process_audit', 'commandbus')) IS NOT NULL THEN
        RAISE EXCEPTION 'the tables of revision 0001 exist already'
            USING HINT = 'Adopt them: run "python -m commandbus_process.migrations adopt". Their rows are kept.';
    END IF;
END
$$;

CREATE TABLE commandbus.process (
    domain VARCHAR(255) NOT NULL, 
    process_id UUID NOT NULL, 
    process_type VARCHAR(255) NOT NULL, 
    status VARCHAR(50) DEFAULT 'PENDING' NOT NULL, 
    current_step VARCHAR(255), 
    state JSONB DEFAULT '{}'::jsonb NOT NULL, 
    error_code VARCHAR(255), 
    error_message TEXT, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    completed_at TIMESTAMP WITH TIME ZONE, 
    CONSTRAINT process_pkey PRIMARY KEY (domain, process_id)
);

CREATE INDEX idx_process_type ON commandbus.process (domain, process_type);

CREATE INDEX idx_process_status ON commandbus.process (domain, status);

CREATE INDEX idx_process_created ON commandbus.process (created_at);

CREATE TABLE commandbus.process_audit (
    id BIGSERIAL NOT NULL, 
    domain VARCHAR(255) NOT NULL, 
    process_id UUID NOT NULL, 
    step_name VARCHAR(255) NOT NULL, 
    command_id UUID NOT NULL, 
    command_type VARCHAR(255) NOT NULL, 
    command_data JSONB, 
    sent_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    reply_outcome VARCHAR(50), 
    reply_data JSONB, 
    received_at TIMESTAMP WITH TIME ZONE, 
    CONSTRAINT process_audit_pkey PRIMARY KEY (id), 
    CONSTRAINT process_audit_domain_process_id_fkey FOREIGN KEY(domain, process_id) REFERENCES commandbus.process (domain, process_id)
);

CREATE INDEX idx_process_audit_process ON commandbus.process_audit (domain, process_id);

CREATE INDEX idx_process_audit_command ON commandbus.process_audit (command_id);

INSERT INTO commandbus.commandbus_process_version (version_num) VALUES ('commandbus_0001') RETURNING commandbus.commandbus_process_version.version_num;

COMMIT;

RESET search_path;

