"""Functions and operators in `public` that fit better than the server's must not run with the migrator's rights."""

from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest
from alembic import command
from psycopg import sql
from sqlalchemy import create_engine

from commandbus_process.guards import guard_statements
from commandbus_process.migrations import alembic_config
from tests.support.databases import Server, as_role, async_url, execute, execute_script, fresh_database
from tests.support.schema import SECOND, alembic, seed, succeeds


class Hostile(NamedTuple):
    """A function whose arguments have exactly the types of a call; the server's own has to convert one of them.

    Attributes:
        arguments: Its arguments.
        returns: What it returns.
        answer: How it answers: as the server's own does, so that nobody notices.
        call: A call that it answers if `public` is on the search path.
    """

    arguments: str
    returns: str
    answer: str
    call: str


FUNCTIONS = {
    "array_to_string": Hostile("bigint[], text", "text", "''", "array_to_string('{1}'::bigint[], ', ')"),
    "format": Hostile("text, name", "text", "pg_catalog.format($1, $2)", "format('%I', 'a'::name)"),
    "format_of_duplicates": Hostile(
        "text, text, uuid, uuid, text", "text", "''", f"format('', '', '{SECOND}'::uuid, '{SECOND}'::uuid, ''::text)"
    ),
    "format_of_torn": Hostile(
        "text, text, uuid, uuid, bigint, text",
        "text",
        "''",
        f"format('', '', '{SECOND}'::uuid, '{SECOND}'::uuid, 1::bigint, ''::text)",
    ),
    "quote_literal": Hostile("varchar", "text", "$1::text", "quote_literal('a'::varchar)"),
    "hashtextextended": Hostile("text, integer", "bigint", "1", "hashtextextended('a', 0)"),
    "set_config": Hostile(
        "text, varchar, boolean", "text", "pg_catalog.set_config($1, $2, $3)", "set_config('a.b', 'c'::varchar, true)"
    ),
}
OPERATORS = {
    "same_text": Hostile("varchar, varchar", "=", "$1::text OPERATOR(pg_catalog.=) $2::text", "'a'::varchar = 'b'"),
    "same_name": Hostile("name, varchar", "=", "$1::text OPERATOR(pg_catalog.=) $2::text", "'a'::name = 'b'::varchar"),
    "same_oid": Hostile("oid, regclass", "=", "$1 OPERATOR(pg_catalog.=) $2::oid", "1::oid = 'pg_class'::regclass"),
    "same_type": Hostile("oid, regtype", "=", "$1 OPERATOR(pg_catalog.=) $2::oid", "1::oid = 'text'::regtype"),
}


def hostile_schema() -> Iterator[str]:
    """A sequence stays advanced when a transaction is rolled back, so it is the mark."""
    yield "CREATE SEQUENCE public.called"
    yield "GRANT USAGE ON SEQUENCE public.called TO PUBLIC"

    def function(name: str, arguments: str, returns: str, answer: str) -> str:
        return f"""
            CREATE FUNCTION public.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_catalog.nextval('public.called');
                RETURN {answer};
            END $$
        """

    for name, each in FUNCTIONS.items():
        yield function(name.partition("_of_")[0], each.arguments, each.returns, each.answer)
    for name, each in OPERATORS.items():
        yield function(name, each.arguments, "boolean", each.answer)
        left, _, right = each.arguments.partition(", ")
        yield f"CREATE OPERATOR public.{each.returns} (FUNCTION = {name}, LEFTARG = {left}, RIGHTARG = {right})"


@pytest.fixture
def hostile_url(empty_database_url: str, newest_server: Server) -> str:
    """A database whose sessions have `public` on their search path, and what is in it; as the migrator's role."""
    execute(empty_database_url, "; ".join(hostile_schema()))
    with psycopg.connect(empty_database_url) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET search_path TO public").format(name))
        migrator = sql.Identifier(newest_server.migrator)
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(name, migrator))
    return as_role(empty_database_url, newest_server.migrator)


def was_called(url: str) -> bool:
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = pg_catalog")
        return connection.execute("SELECT is_called FROM public.called").fetchall() == [(True,)]


CALLS = [each.call for each in (*FUNCTIONS.values(), *OPERATORS.values())]


@pytest.mark.parametrize("call", CALLS)
def test_hostile_functions_run_if_nothing_prevents_it(hostile_url: str, empty_database_url: str, call: str) -> None:
    execute(hostile_url, f"SELECT {call}")
    assert was_called(empty_database_url)


def hand_over(url: str, migrator: str) -> None:
    """Make the tables by hand, as the migrator's own."""
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = pg_catalog")
        tables = "commandbus.process, commandbus.process_audit"
        connection.execute(f"ALTER SCHEMA commandbus OWNER TO {migrator}".encode())
        for table in tables.split(", "):
            connection.execute(f"ALTER TABLE {table} OWNER TO {migrator}".encode())


TEAR_AND_REPEAT = {
    "commandbus_0001": "INSERT INTO commandbus.process_audit "
    "(domain, process_id, step_name, command_id, command_type, sent_at) "
    "SELECT domain, process_id, step_name, command_id, command_type, sent_at FROM commandbus.process_audit",
    "commandbus_0002": "UPDATE commandbus.process_audit SET received_at = NULL",
}


@pytest.mark.parametrize("way", ["online", "offline"])
def test_no_hostile_function_runs_when_tables_are_adopted(
    hostile_url: str, empty_database_url: str, newest_server: Server, way: str
) -> None:
    def upgrade(first: str, last: str) -> str:
        """Upgrade, and return the message if it was refused."""
        if way == "online":
            return alembic("upgrade", last, url=hostile_url).stderr
        try:
            execute_script(hostile_url, succeeds("upgrade", f"{first}:{last}", "--sql", url=None))
        except psycopg.errors.RaiseException as error:
            return str(error)
        return ""

    seed(empty_database_url)
    hand_over(empty_database_url, newest_server.migrator)
    if way == "online":
        succeeds("stamp", "commandbus_0001", url=hostile_url)
    else:
        execute_script(hostile_url, succeeds("stamp", "commandbus_0001", "--sql", url=None))
    assert not was_called(empty_database_url)
    # Both messages name the rows, with the functions for it.
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(TEAR_AND_REPEAT["commandbus_0001"].encode())
    assert "rows with id" in upgrade("commandbus_0001", "head")
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("DELETE FROM commandbus.process_audit WHERE id > 3")
    upgrade("commandbus_0001", "commandbus_0002")
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(TEAR_AND_REPEAT["commandbus_0002"].encode())
    assert "row with id 1 has an outcome, but no time" in upgrade("commandbus_0002", "head")
    assert not was_called(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("UPDATE commandbus.process_audit SET reply_outcome = NULL")
    upgrade("commandbus_0002", "head")
    assert succeeds("current", url=hostile_url).startswith("commandbus_0005")
    assert not was_called(empty_database_url)


def test_no_hostile_function_runs_in_an_empty_database(
    hostile_url: str, empty_database_url: str, newest_server: Server
) -> None:
    for _ in range(2):
        succeeds("upgrade", "head", url=hostile_url)
        succeeds("check", url=hostile_url)
        execute(hostile_url, "; ".join(guard_statements()))
        succeeds("downgrade", "base", url=hostile_url)
    assert not was_called(empty_database_url)
    with fresh_database(newest_server.url) as offline:
        execute(offline, "; ".join(hostile_schema()))
        execute_script(offline, "SET search_path = public;\n\n" + succeeds("upgrade", "head", "--sql", url=None))
        # What a CHECK calls was settled when it was made.
        execute(
            offline,
            "INSERT INTO commandbus.process (domain, process_id, process_type) VALUES ('a', gen_random_uuid(), 'b')",
        )
        assert not was_called(offline)


def test_no_hostile_function_runs_on_a_hosts_connection(hostile_url: str, empty_database_url: str) -> None:
    engine = create_engine(async_url(hostile_url), use_native_hstore=False)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "public"
    engine.dispose()
    assert not was_called(empty_database_url)
