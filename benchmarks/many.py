"""What the benchmarks with many processes share: databases made in the server, and how figures are printed.

95 of 100 processes have ended, and each has five steps.
"""

import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.database import Database, driver_url
from demo.server import running_server

DOMAIN = "scale"
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
"""When the processes begin to be created: one each second."""
STEPS = 5
OPEN = 20
"""One of so many processes has not ended."""

_PROCESSES = f"""
INSERT INTO commandbus.process (domain, process_id, process_type, status, current_step, state, created_at, updated_at,
                                completed_at, business_key, deadline)
SELECT '{DOMAIN}', md5(number::text)::uuid, CASE number %% 3 WHEN 0 THEN 'order' WHEN 1 THEN 'refund' ELSE 'move' END,
       CASE WHEN number %% {OPEN} <> 0 THEN CASE number %% 50 WHEN 1 THEN 'FAILED' ELSE 'COMPLETED' END
            WHEN number %% 1000 = 0 THEN 'WAITING_FOR_TSQ' ELSE 'WAITING' END,
       CASE WHEN number %% {OPEN} = 0 THEN 'charge' END,
       jsonb_build_object('number', number, 'customer', 'customer ' || number %% 1000, 'total', number %% 977 + 0.5,
                          'items', jsonb_build_array('book', 'pen', number %% 7)),
       timestamptz '{FIRST.isoformat()}' + number * interval '1 second',
       timestamptz '{FIRST.isoformat()}' + number * interval '1 second' + interval '5 minutes',
       CASE WHEN number %% {OPEN} <> 0
            THEN timestamptz '{FIRST.isoformat()}' + number * interval '1 second' + interval '5 minutes' END,
       'A-' || number,
       CASE WHEN number %% {OPEN} = 0
            THEN timestamptz '{FIRST.isoformat()}' + number * interval '1 second' + interval '1 hour' END
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number
"""  # noqa: S608 - texts of ours
_TRAILS = f"""
INSERT INTO commandbus.process_audit (domain, process_id, step_name, command_id, command_type, command_data, sent_at,
                                      reply_outcome, reply_data, received_at)
SELECT '{DOMAIN}', md5(number::text)::uuid, 'step ' || step, md5(number || ' ' || step)::uuid, 'Command',
       jsonb_build_object('quantity', step), timestamptz '{FIRST.isoformat()}' + number * interval '1 second',
       CASE WHEN is_open THEN NULL ELSE 'SUCCESS' END,
       CASE WHEN is_open THEN NULL ELSE jsonb_build_object('done', step) END,
       CASE WHEN is_open THEN NULL
            ELSE timestamptz '{FIRST.isoformat()}' + number * interval '1 second' + number %% 60 * interval '1 second'
       END
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number, generate_series(1, {STEPS}) AS step,
     LATERAL (SELECT number %% {OPEN} = 0 AND step = {STEPS} AS is_open) AS open
"""  # noqa: S608 - texts of ours
_AT_A_TIME = 100_000


@contextmanager
def database_of(size: int) -> Generator[str]:
    """Yield the URL of a database with so many processes, on an embedded PostgreSQL of its own."""
    folder = Path(mkdtemp(prefix="commandbus-scale-"))
    try:
        with (
            running_server(None, folder) as server,
            closing(Database(server.url, f"commandbus_scale_{size}", "head")) as database,
        ):
            _fill(driver_url(database.url), size)
            yield database.url.render_as_string(hide_password=False)
    finally:
        rmtree(folder, ignore_errors=True)


def _fill(url: str, size: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for first in range(1, size + 1, _AT_A_TIME):
            part = {"first": first, "last": min(size, first + _AT_A_TIME - 1)}
            connection.execute(_PROCESSES.encode(), part)
            connection.execute(_TRAILS.encode(), part)
        connection.execute("VACUUM (ANALYZE) commandbus.process, commandbus.process_audit")


def print_table(table: Table) -> None:
    """Print a table of figures, as wide as the terminal, or 120 columns wide into a file."""
    Console(width=None if sys.stdout.isatty() else 120).print(table)
