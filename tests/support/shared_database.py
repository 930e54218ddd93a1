"""A database that one test after the other gets, empty and unchanged: making one takes longer than most tests."""

import time
from contextlib import ExitStack

import psycopg

from tests.support.databases import Server, fresh_database

# The objects that anybody has made, their rights, and settings of the database. Names only of constraints, since
# `write_unchecked` makes them again.
_SCHEMA = """
    SELECT 'relation', oid::text, relacl::text, reloptions::text FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT 'function', oid::text, proacl::text, proconfig::text FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'schema', oid::text, nspacl::text, nspname FROM pg_namespace
        WHERE oid >= 16384 OR nspname = 'public'
    UNION ALL SELECT 'trigger', oid::text, tgenabled::text, tgname::text FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'constraint', conrelid::text, conname::text, '' FROM pg_constraint WHERE oid >= 16384
    UNION ALL SELECT 'column', attrelid::text, attname::text, attacl::text FROM pg_attribute
        WHERE attrelid >= 16384 AND attnum > 0
    UNION ALL SELECT 'policy', oid::text, polname::text, '' FROM pg_policy
    UNION ALL SELECT 'setting', setrole::text, setconfig::text, '' FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# A small table is emptied fastest by DELETE (0.2 ms; TRUNCATE takes 5 to 10), but dead rows must not pile up.
_EMPTY = """
    DO $$
    DECLARE
        unchecked record;
    BEGIN
        IF pg_relation_size('commandbus.process') + pg_relation_size('commandbus.process_audit') > 1000000 THEN
            TRUNCATE commandbus.process, commandbus.process_audit;
        ELSE
            DELETE FROM commandbus.process_audit;
            DELETE FROM commandbus.process;
        END IF;
        FOR unchecked IN
            SELECT conrelid::regclass AS of_table, conname FROM pg_constraint WHERE contype = 'c' AND NOT convalidated
        LOOP
            EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', unchecked.of_table, unchecked.conname);
        END LOOP;
    END $$
"""
_OTHERS = """
    FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
"""
_PATIENCE = 10.0  # seconds for the last test's sessions to end


class SharedDatabase:
    """A migrated database and its administrator's session.

    Attributes:
        url: The administrator's URL.
    """

    def __init__(self, server: Server) -> None:
        self._stack = ExitStack()
        self.url = self._stack.enter_context(fresh_database(server.url, server.template))
        self._session = psycopg.connect(self.url, autocommit=True)
        self._schema = self._read_schema()

    def drop(self) -> None:
        self._session.close()
        self._stack.close()

    def empty(self) -> None:
        """Delete all rows, once nothing that a test has left behind can write any more."""
        deadline = time.monotonic() + _PATIENCE
        while self._execute(f"SELECT pid {_OTHERS}").fetchall():
            if time.monotonic() > deadline:
                self._execute(f"SELECT pg_terminate_backend(pid) {_OTHERS}")
        self._execute(_EMPTY)

    def is_changed(self) -> bool:
        """Whether anything but rows is different from what it was at first."""
        return self._read_schema() != self._schema

    def _read_schema(self) -> set[tuple[object, ...]]:
        return set(self._execute(_SCHEMA).fetchall())

    def _execute(self, statement: str) -> psycopg.Cursor[tuple[object, ...]]:
        try:
            return self._session.execute(statement.encode())
        except psycopg.OperationalError:  # a test has ended all sessions but its own
            self._session.close()
            self._session = psycopg.connect(self.url, autocommit=True)
            return self._session.execute(statement.encode())
