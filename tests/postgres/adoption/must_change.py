"""Differences that the library does not work with."""

from tests.postgres.adoption.variations import (
    AUDIT,
    LINK,
    LINKED,
    NO_NUMBER_DEFAULT,
    PROCESS,
    UNLINKED,
    WHOLE,
    Variation,
    alter,
    retyped,
)
from tests.support.schema import COMMAND, FIRST

# No embedded server knows collations that are not deterministic. This one is so for the catalogue only.
CASELESS = (
    'CREATE COLLATION public.caseless FROM "C";'
    "UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'caseless';"
)
ORPHAN = (
    "INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at) "
    "VALUES ('orders', gen_random_uuid(), 'lost', gen_random_uuid(), 'Reserve', now());"
)
AGAIN = (
    "INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, sent_at) "
    f"VALUES ('orders', '{FIRST}', 'again', '{COMMAND}', 'Reserve', now());"
)
# Older servers know stored ones only.
VIRTUAL = """
DO $$ BEGIN
    EXECUTE 'ALTER TABLE commandbus.process ADD error_code varchar(255) GENERATED ALWAYS AS (''none'') '
        || CASE WHEN current_setting('server_version_num')::int >= 180000 THEN 'VIRTUAL' ELSE 'STORED' END;
END $$
"""

TYPES = {
    "times without a zone": Variation(
        alter(PROCESS, "ALTER created_at TYPE timestamp"), "process.created_at", because="in which zone"
    ),
    "a time without a zone that may be missing": Variation(
        alter(AUDIT, "ALTER received_at TYPE timestamp"), "process_audit.received_at"
    ),
    "dates": Variation(alter(PROCESS, "ALTER completed_at TYPE date"), "process.completed_at"),
    "times without fractions": Variation(
        alter(AUDIT, "ALTER sent_at TYPE timestamptz(0)"), "process_audit.sent_at", because="find again"
    ),
    "shorter names": Variation(
        alter(PROCESS, "ALTER current_step TYPE varchar(100)"), "process.current_step", because="100 characters"
    ),
    "padded names": Variation(alter(PROCESS, "ALTER status TYPE char(20)"), "process.status"),
    "json": Variation(
        alter(PROCESS, "ALTER state DROP DEFAULT", "ALTER state TYPE json USING state::json"), "process.state"
    ),
    "json as text": Variation(
        alter(PROCESS, "ALTER state DROP DEFAULT", "ALTER state TYPE text", "ALTER state SET DEFAULT '{}'"),
        "process.state",
    ),
    "process ids as text": Variation(
        UNLINKED + retyped(PROCESS, "process_id", "text") + retyped(AUDIT, "process_id", "text") + LINKED,
        "process_audit.process_id",
    ),
    "command ids as text": Variation(alter(AUDIT, "ALTER command_id TYPE text"), "process_audit.command_id"),
    "small ids": Variation(alter(AUDIT, "ALTER id TYPE smallint"), "process_audit.id"),
    "small versions": Variation(alter(PROCESS, "ALTER version TYPE smallint"), "process.version", at="commandbus_0003"),
    "an enumeration": Variation(
        "CREATE TYPE public.status AS ENUM ('PENDING', 'WAITING');"
        + alter(
            PROCESS,
            "ALTER status DROP DEFAULT",
            "ALTER status TYPE public.status USING status::public.status",
            "ALTER status SET DEFAULT 'PENDING'",
        ),
        "process.status",
    ),
    "a domain type with a CHECK": Variation(
        "CREATE DOMAIN commandbus.status AS varchar(50) CHECK (VALUE IN ('PENDING', 'WAITING'));"
        + alter(PROCESS, "ALTER status TYPE commandbus.status"),
        "process.status",
        because="refuses values",
    ),
    "a collation for which different texts are equal": Variation(
        CASELESS + UNLINKED
        + alter(PROCESS, "ALTER domain TYPE varchar(255) COLLATE public.caseless")
        + alter(AUDIT, "ALTER domain TYPE varchar(255) COLLATE public.caseless") + LINKED,
        "process_audit.domain",
        because="not deterministic",
    ),
    "a collation of a status": Variation(
        CASELESS + alter(PROCESS, "ALTER status TYPE varchar(50) COLLATE public.caseless"), "process.status"
    ),
    "a view over a column": Variation(
        alter(PROCESS, "ALTER created_at TYPE timestamp")
        + "CREATE VIEW public.recent AS SELECT created_at FROM commandbus.process;",
        "process.created_at",
        because="view public.recent",
        fill="DROP VIEW public.recent",
    ),
}  # fmt: skip

COLUMNS = {
    "a column that may be NULL": Variation(
        alter(PROCESS, "ALTER process_type DROP NOT NULL")
        + "UPDATE commandbus.process SET process_type = NULL WHERE status = 'PENDING'",
        "process.process_type",
        fill="UPDATE commandbus.process SET process_type = 'order' WHERE process_type IS NULL",
    ),
    "a column that may not be NULL": Variation(
        "UPDATE commandbus.process SET current_step = ''; " + alter(PROCESS, "ALTER current_step SET NOT NULL"),
        "process.current_step",
        because="writes NULL",
    ),
    "no column": Variation(alter(PROCESS, "DROP error_code"), "process.error_code", because="missing"),
    "no column with a default": Variation(alter(PROCESS, "DROP updated_at"), "process.updated_at"),
    "no column that must have a value": Variation(
        alter(AUDIT, "DROP command_type"),
        "process_audit.command_type",
        because="Only you know",
        fill="ALTER TABLE commandbus.process_audit ADD command_type varchar(255); "
        "UPDATE commandbus.process_audit SET command_type = 'Reserve'",
    ),
    "no ids": Variation(alter(AUDIT, "DROP id"), "process_audit.id"),
    "a column of one's own that must have a value": Variation(
        alter(PROCESS, "ADD tenant text NOT NULL DEFAULT 'a'") + alter(PROCESS, "ALTER tenant DROP DEFAULT"),
        "process.tenant",
    ),
    "a column of one's own that a revision makes": Variation(
        alter(PROCESS, "ADD deadline date"), "process.deadline", because="commandbus_0005"
    ),
    "a business key that must have a value": Variation(
        alter(PROCESS, "ADD business_key varchar(255) NOT NULL DEFAULT ''"), "process.business_key"
    ),
    "a stored generated column": Variation(
        alter(PROCESS, "DROP error_code", "ADD error_code varchar(255) GENERATED ALWAYS AS ('none') STORED"),
        "process.error_code",
        because="generated",
    ),
    "a virtual generated column": Variation(
        alter(PROCESS, "DROP error_code") + VIRTUAL, "process.error_code", because="generated"
    ),
    "no default of the version": Variation(
        alter(PROCESS, "ALTER version DROP DEFAULT"), "process.version", at="commandbus_0005"
    ),
    "another default of the state's version": Variation(
        alter(PROCESS, "ALTER state_version SET DEFAULT 7"), "process.state_version", at="commandbus_0005"
    ),
    "no sequence": Variation(NO_NUMBER_DEFAULT, "process_audit.id", because="No sequence"),
    "a default that is no sequence": Variation(
        "CREATE FUNCTION public.random_id() RETURNS bigint LANGUAGE sql AS 'SELECT (random() * 1e9)::bigint';"
        + alter(AUDIT, "ALTER id SET DEFAULT public.random_id()"),
        "process_audit.id",
    ),
    "a sequence with a cache": Variation(
        "ALTER SEQUENCE commandbus.process_audit_id_seq CACHE 20", "process_audit.id", because="order of logging"
    ),
    "a sequence that begins again": Variation(
        "ALTER SEQUENCE commandbus.process_audit_id_seq CYCLE", "process_audit.id", because="begins again"
    ),
    "a sequence that counts down": Variation(
        "ALTER SEQUENCE commandbus.process_audit_id_seq INCREMENT -1 MINVALUE -1000 MAXVALUE 1000 START 3",
        "process_audit.id",
        because="counts down",
    ),
    "a sequence that is behind": Variation(
        "SELECT setval('commandbus.process_audit_id_seq', 1)", "process_audit.id", because="beyond the largest"
    ),
}

KEYS = {
    "another primary key": Variation(
        UNLINKED + alter(PROCESS, "DROP CONSTRAINT process_pkey", "ADD PRIMARY KEY (process_id)"),
        "process.process_pkey",
        "primary key",
    ),
    "a primary key that is checked at the end": Variation(
        UNLINKED + alter(PROCESS, "DROP CONSTRAINT process_pkey", "ADD PRIMARY KEY (domain, process_id) DEFERRABLE"),
        "process.process_pkey",
        "primary key",
    ),
    "no primary key": Variation(
        UNLINKED + alter(PROCESS, "DROP CONSTRAINT process_pkey"), "process.process_pkey", "primary key"
    ),
    "no primary key of the trail": Variation(
        alter(AUDIT, "DROP CONSTRAINT process_audit_pkey"), "process_audit.process_audit_pkey", "primary key"
    ),
    "a table that refers to the trail": Variation(
        "CREATE TABLE public.mail (step bigint REFERENCES commandbus.process_audit (id))",
        "process_audit.process_audit_pkey",
        "primary key",
        because="public.mail",
    ),
    "no foreign key": Variation(
        UNLINKED + ORPHAN,
        f"process_audit.{LINK}",
        "foreign key",
        fill="DELETE FROM commandbus.process_audit WHERE step_name = 'lost'",
    ),
    "a foreign key that is not valid": Variation(
        UNLINKED + LINKED.replace(";", " NOT VALID;"), f"process_audit.{LINK}", "foreign key"
    ),
    "a foreign key that empties its columns": Variation(
        UNLINKED + LINKED.replace(";", " ON DELETE SET NULL;"), f"process_audit.{LINK}", "foreign key"
    ),
    "a foreign key that is checked at the end": Variation(
        UNLINKED + LINKED.replace(";", " DEFERRABLE INITIALLY DEFERRED;"), f"process_audit.{LINK}", "foreign key"
    ),
    "a foreign key to the commands": Variation(
        "INSERT INTO commandbus.command SELECT DISTINCT command_id, domain FROM commandbus.process_audit;"
        + alter(AUDIT, "ADD FOREIGN KEY (command_id) REFERENCES commandbus.command (command_id)"),
        "process_audit.process_audit_command_id_fkey",
        "foreign key",
    ),
    "no key of the commands": Variation(
        alter(AUDIT, "DROP CONSTRAINT process_audit_command_key") + AGAIN,
        "process_audit.process_audit_command_key",
        "unique key",
        at="commandbus_0005",
        fill="DELETE FROM commandbus.process_audit WHERE step_name = 'again'",
    ),
    "another name of the key of the commands": Variation(
        alter(AUDIT, "RENAME CONSTRAINT process_audit_command_key TO once"),
        "process_audit.process_audit_command_key",
        "unique key",
        at="commandbus_0004",
    ),
    "a command that is logged twice": Variation(
        AGAIN,
        "process_audit: several rows with the same domain, process_id, command_id",
        "rows",
        fill="DELETE FROM commandbus.process_audit WHERE step_name = 'again'",
    ),
    "a torn reply": Variation(
        "UPDATE commandbus.process_audit SET received_at = NULL",
        "process_audit: rows that break process_audit_reply_check",
        "rows",
        fill="UPDATE commandbus.process_audit SET received_at = now() WHERE reply_outcome IS NOT NULL",
    ),
    "a key that refuses a command of another process": Variation(
        "DELETE FROM commandbus.process_audit WHERE id = 3;" + alter(AUDIT, "ADD CONSTRAINT once UNIQUE (command_id)"),
        "process_audit.once",
        "index",
    ),
    "a unique index": Variation("CREATE UNIQUE INDEX once ON commandbus.process (process_id)", "process.once", "index"),
    "a constraint whose name is needed": Variation(
        alter(AUDIT, "ADD CONSTRAINT process_audit_command_key UNIQUE (id, command_id)"),
        "process_audit.process_audit_command_key",
        "index",
    ),
    "an index whose name is needed": Variation(
        "CREATE INDEX idx_process_deadline ON commandbus.process (domain)", "process.idx_process_deadline", "index"
    ),
    "an index of another table whose name is needed": Variation(
        "CREATE INDEX idx_process_status_created ON commandbus.command (domain)", "idx_process_status_created", "index"
    ),
    "no index that is needed": Variation(
        "DROP INDEX commandbus.idx_process_status_created",
        "process.idx_process_status_created",
        "index",
        at="commandbus_0005",
    ),
    "another index": Variation(
        "DROP INDEX commandbus.idx_process_deadline;CREATE INDEX idx_process_deadline ON commandbus.process (deadline)",
        "process.idx_process_deadline",
        "index",
        at="commandbus_0005",
    ),
    "another name of an index that is needed": Variation(
        "ALTER INDEX commandbus.idx_process_status_created RENAME TO waiting",
        "process.idx_process_status_created",
        "index",
        at="commandbus_0003",
    ),
    "a CHECK that knows fewer statuses": Variation(
        alter(PROCESS, "ADD CONSTRAINT few CHECK (status IN ('PENDING', 'WAITING', 'COMPLETED'))"),
        "process.few",
        "CHECK",
        because="CANCELED",
    ),
    "a CHECK that is made before and not valid": Variation(
        alter(AUDIT, f"ADD CONSTRAINT process_audit_reply_check CHECK ({WHOLE}) NOT VALID"),
        "process_audit.process_audit_reply_check",
        "CHECK",
    ),
    "a CHECK whose name is needed": Variation(
        alter(PROCESS, "ADD CONSTRAINT process_status_known CHECK (status <> '')"),
        "process.process_status_known",
        "CHECK",
    ),
    "no CHECK": Variation(
        alter(PROCESS, "DROP CONSTRAINT process_version_positive"),
        "process.process_version_positive",
        "CHECK",
        at="commandbus_0005",
    ),
    "another CHECK": Variation(
        alter(PROCESS, "DROP CONSTRAINT process_version_positive")
        + alter(PROCESS, "ADD CONSTRAINT process_version_positive CHECK (version > 1) NOT VALID"),
        "process.process_version_positive",
        "CHECK",
        at="commandbus_0005",
    ),
    "another name of a CHECK": Variation(
        alter(PROCESS, "RENAME CONSTRAINT process_version_positive TO positive"),
        "process.process_version_positive",
        "CHECK",
        at="commandbus_0005",
    ),
}

TABLES = {
    "an unlogged table": Variation(alter(AUDIT, "SET UNLOGGED"), "process_audit", "table", because="crash"),
    "a partition": Variation(
        "CREATE TABLE public.steps (LIKE commandbus.process_audit) PARTITION BY LIST (domain);"
        "ALTER TABLE public.steps ATTACH PARTITION commandbus.process_audit DEFAULT",
        "process_audit",
        "table",
        because="public.steps",
    ),
    "a table that inherits": Variation(
        "CREATE TABLE public.old () INHERITS (commandbus.process_audit)", "process_audit", "table", because="public.old"
    ),
    "a table of a type": Variation(
        "DO $$ DECLARE fields text; BEGIN"
        "  SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) INTO fields"
        "  FROM pg_attribute WHERE attrelid = 'commandbus.process_audit'::regclass AND attnum > 0;"
        "  EXECUTE 'CREATE TYPE public.step AS (' || fields || ')';"
        "END $$; ALTER TABLE commandbus.process_audit OF public.step",
        "process_audit",
        "table",
    ),
    "a rule": Variation("CREATE RULE log AS ON INSERT TO commandbus.process DO ALSO NOTHING", "process.log", "rule"),
}

MUST_CHANGE = TYPES | COLUMNS | KEYS | TABLES
