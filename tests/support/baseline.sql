-- The tables as existing command-bus databases have them: what revision 0001 must equal, and 0002 must be able to adopt.
CREATE SCHEMA commandbus;

CREATE TABLE commandbus.process (
    domain varchar(255) NOT NULL,
    process_id uuid NOT NULL,
    process_type varchar(255) NOT NULL,
    status varchar(50) NOT NULL DEFAULT 'PENDING',
    current_step varchar(255),
    state jsonb NOT NULL DEFAULT '{}',
    error_code varchar(255),
    error_message text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    PRIMARY KEY (domain, process_id)
);
CREATE INDEX idx_process_type ON commandbus.process (domain, process_type);
CREATE INDEX idx_process_status ON commandbus.process (domain, status);
CREATE INDEX idx_process_created ON commandbus.process (created_at);

CREATE TABLE commandbus.process_audit (
    id bigserial PRIMARY KEY,
    domain varchar(255) NOT NULL,
    process_id uuid NOT NULL,
    step_name varchar(255) NOT NULL,
    command_id uuid NOT NULL,
    command_type varchar(255) NOT NULL,
    command_data jsonb,
    sent_at timestamptz NOT NULL,
    reply_outcome varchar(50),
    reply_data jsonb,
    received_at timestamptz,
    FOREIGN KEY (domain, process_id) REFERENCES commandbus.process (domain, process_id)
);
CREATE INDEX idx_process_audit_process ON commandbus.process_audit (domain, process_id);
CREATE INDEX idx_process_audit_command ON commandbus.process_audit (command_id);

-- The rest of the command bus, which is none of this library's business.
CREATE TABLE commandbus.command (command_id uuid PRIMARY KEY, domain text NOT NULL);
