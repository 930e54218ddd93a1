"""The queries that read the catalogue. Those about tables take their `oids`, and return the table as `of_table`.

They run with `pg_catalog` as the search path.
"""

ROLE = """
SELECT current_user::text AS role, current_setting('server_version_num')::int AS server,
    coalesce(has_schema_privilege(to_regnamespace(quote_ident(:schema))::oid, 'CREATE'), false) AS may_create
"""

TABLES = """
SELECT c.oid::bigint AS oid, c.relname::text AS name, c.relkind::text AS kind, c.relpersistence = 'u' AS is_unlogged,
    c.reloftype <> 0 AS is_typed,
    (SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid AND c.relispartition) AS partition_of,
    ARRAY(SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = c.oid ORDER BY 1) AS children,
    pg_get_userbyid(c.relowner)::text AS owner, pg_has_role(c.relowner, 'USAGE') AS is_ours,
    has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS is_readable,
    c.relrowsecurity OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) AS has_policies,
    row_security_active(c.oid) AS hides_rows
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = ANY(:names) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY c.relname
"""

# A domain may stand for another domain, so the type is followed to its end.
COLUMNS = """
WITH RECURSIVE resolved AS (
    SELECT attrelid, attnum, atttypid AS type, atttypmod AS modifier, false AS has_rules
    FROM pg_attribute WHERE attrelid::bigint = ANY(:oids) AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT attrelid, attnum, t.typbasetype, t.typtypmod,
        has_rules OR t.typnotnull OR EXISTS (SELECT FROM pg_constraint WHERE contypid = t.oid)
    FROM resolved JOIN pg_type t ON t.oid = resolved.type WHERE t.typtype = 'd'
)
SELECT a.attrelid::bigint AS of_table, a.attname::text AS name, format_type(r.type, r.modifier) AS type,
    CASE WHEN r.type <> a.atttypid THEN format_type(a.atttypid, NULL) END AS domain, r.has_rules AS domain_has_rules,
    CASE WHEN l.collname <> 'default' THEN l.oid::regcollation::text END AS collation,
    coalesce(l.collisdeterministic, true) AS is_deterministic, NOT a.attnotnull AS is_nullable,
    CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END AS default,
    a.attidentity::text AS identity, a.attgenerated::text AS generated,
    CASE WHEN a.attidentity <> '' THEN (
            SELECT objid::bigint FROM pg_depend JOIN pg_class s ON s.oid = objid AND s.relkind = 'S'
            WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = a.attrelid
                AND refobjsubid = a.attnum AND deptype = 'i')
        WHEN pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%::regclass)' THEN (
            SELECT refobjid::bigint FROM pg_depend JOIN pg_class s ON s.oid = refobjid AND s.relkind = 'S'
            WHERE classid = 'pg_attrdef'::regclass AND objid = d.oid AND refclassid = 'pg_class'::regclass)
    END AS sequence,
    has_table_privilege(a.attrelid, 'SELECT') AS is_readable, quote_ident(a.attname) AS quoted_name,
    a.attrelid::regclass::text AS quoted_table
FROM pg_attribute a
JOIN resolved r ON r.attrelid = a.attrelid AND r.attnum = a.attnum
JOIN pg_type t ON t.oid = r.type AND t.typtype <> 'd'
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
ORDER BY a.attrelid, a.attnum
"""

SEQUENCE = """
SELECT n.nspname::text AS schema, c.relname::text AS name, s.seqincrement AS increment, s.seqcache AS cache,
    s.seqcycle AS cycles, format('%I.%I', n.nspname, c.relname) AS quoted_name,
    has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(c.oid, 'SELECT') AS is_readable
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE s.seqrelid::bigint = :oid
"""

# What ALTER COLUMN … TYPE refuses to go past, and foreign keys of other tables, which must have the same type.
USES = """
SELECT a.attrelid::bigint AS of_table, a.attname::text AS name,
    pg_describe_object(d.classid, d.objid, 0) AS used_by
FROM pg_depend d
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
LEFT JOIN pg_constraint f ON d.classid = 'pg_constraint'::regclass AND f.oid = d.objid
LEFT JOIN pg_attrdef g ON d.classid = 'pg_attrdef'::regclass AND g.oid = d.objid
WHERE d.refclassid = 'pg_class'::regclass AND a.attrelid::bigint = ANY(:oids)
    AND (d.classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass)
        OR (f.contype = 'f' AND NOT f.conrelid::bigint = ANY(:oids))
        OR (g.adrelid = a.attrelid AND g.adnum <> a.attnum))
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""

# conenforced is new in PostgreSQL 18.
CONSTRAINTS = """
SELECT c.conrelid::bigint AS of_table, c.conname::text AS name, c.contype::text AS kind,
    ARRAY(
        SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k(number, position)
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number ORDER BY k.position
    ) AS columns,
    replace(pg_get_constraintdef(c.oid), ' NOT VALID', '') AS definition, c.convalidated AS is_valid,
    c.condeferrable AS is_deferrable, coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true) AS is_enforced,
    CASE WHEN n.nspname = :schema THEN r.relname::text ELSE c.confrelid::regclass::text END AS references,
    ARRAY(
        SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k(number, position)
        JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.number ORDER BY k.position
    ) AS referenced_columns,
    trim(c.confdeltype::text) AS on_delete, trim(c.confupdtype::text) AS on_update,
    pg_get_expr(c.conbin, c.conrelid) AS expression,
    EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_constraint'::regclass AND objid = c.oid
            AND refclassid NOT IN ('pg_class'::regclass, 'pg_constraint'::regclass)
    ) AS calls_others
FROM pg_constraint c
LEFT JOIN pg_class r ON r.oid = c.confrelid
LEFT JOIN pg_namespace n ON n.oid = r.relnamespace
WHERE c.conrelid::bigint = ANY(:oids) AND c.contype IN ('p', 'u', 'f', 'c', 'x')
ORDER BY c.conname
"""

INDEXES = """
SELECT i.indrelid::bigint AS of_table, c.relname::text AS name,
    regexp_replace(pg_get_indexdef(i.indexrelid), '^.*? USING ', '') AS definition,
    ARRAY(
        SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(number, position)
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number AND k.number > 0
        WHERE k.position <= i.indnkeyatts ORDER BY k.position
    ) AS columns,
    i.indisunique AS is_unique, i.indisvalid AND i.indisready AS is_valid,
    EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x')) AS is_of_constraint
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid::bigint = ANY(:oids)
ORDER BY c.relname
"""

FOREIGN = """
SELECT c.confrelid::bigint AS of_table, c.conname::text AS name, c.conrelid::regclass::text AS table,
    coalesce((SELECT indisprimary FROM pg_index WHERE indexrelid = c.conindid), false) AS uses_primary_key
FROM pg_constraint c
WHERE c.confrelid::bigint = ANY(:oids) AND NOT c.conrelid::bigint = ANY(:oids) AND c.contype = 'f'
ORDER BY 3, 2
"""

# The bits of tgtype: 1 is for each row, 2 is before.
TRIGGERS = """
SELECT t.tgrelid::bigint AS of_table, t.tgname::text AS name, t.tgfoid::regproc::text AS function,
    t.tgtype & 3 = 3 AS is_before_row
FROM pg_trigger t WHERE t.tgrelid::bigint = ANY(:oids) AND NOT t.tgisinternal
ORDER BY t.tgname
"""

RULES = """
SELECT ev_class::bigint AS of_table, rulename::text AS name FROM pg_rewrite
WHERE ev_class::bigint = ANY(:oids) AND rulename <> '_RETURN'
ORDER BY rulename
"""

OTHERS = """
SELECT c.relname::text AS name, c.relkind::text AS kind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema
"""

VERSION_TABLE = """
SELECT format('%I.%I', n.nspname, c.relname) AS quoted_name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = :name AND c.relkind = 'r'
    AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
"""
