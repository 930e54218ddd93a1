"""PgBouncer in transaction mode in front of a server of the tests, as a child process that nothing else knows of."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import URL, make_url

from tests.support.databases import execute

# Debian installs it in a folder that is not on an ordinary user's PATH.
PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
MISSING = "the program `pgbouncer` is not installed (Debian: apt-get install pgbouncer)"

BACKEND = "SELECT pg_backend_pid()"

# Two connections to the server for each database, which take turns: a client that runs two transactions, even one after
# the other, is served by both. No file of PgBouncer's own and no socket but the one on the loopback interface.
CONFIGURATION = """
[databases]
* = host={host} port={port} user={role} password={role}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
server_round_robin = 1
query_wait_timeout = 30
log_connections = 0
log_disconnections = 0
"""


def version() -> tuple[int, ...]:
    """Return the version of the program that is installed; nothing, if none is."""
    if PROGRAM is None:
        return ()
    told = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", told)
    assert found is not None, told
    return tuple(int(part) for part in found.groups())


# What the documentation asks for: psycopg prepares no statements. Another connection would not know them.
UNPREPARED: dict[str, Any] = {"prepare_threshold": None}

# PgBouncer's own remedy, and its absence. Versions before 1.21 have no such setting; psycopg needs what 1.22 has.
NOT_PREPARING = ["max_prepared_statements = 0"] if version() >= (1, 21) else []
PREPARING = ["max_prepared_statements = 100"]


@contextmanager
def login_role(server_url: str, member_of: str) -> Generator[str]:
    """Make a role that may log in, with its own name as password, and has what another role has."""
    name = f"commandbus_pooled_{uuid.uuid4().hex}"
    execute(server_url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}' IN ROLE {member_of}")
    try:
        yield name
    finally:
        execute(server_url, f"DROP ROLE {name}")


@dataclass(frozen=True)
class PgBouncer:
    """A running PgBouncer on the loopback interface."""

    port: int

    def in_front_of(self, database_url: str) -> str:
        """Return the URL of the same database through PgBouncer, which has two open connections to the server then.

        PgBouncer opens a second one only when the first is busy; then they take turns.
        """
        url = URL.create("postgresql", "application", host="127.0.0.1", port=self.port)
        through = url.set(database=make_url(database_url).database).render_as_string()
        with (
            psycopg.connect(through, prepare_threshold=None) as first,
            psycopg.connect(through, prepare_threshold=None) as second,
        ):
            served_by = {connection.execute(BACKEND).fetchone() for connection in (first, second)}
        assert len(served_by) == 2
        return through


@contextmanager
def running_pgbouncer(server_url: str, role: str, *settings: str) -> Generator[PgBouncer]:
    """Start PgBouncer and end it. It logs in to the server as a role whose password is its name.

    Args:
        server_url: What it stands in front of.
        role: Whom it logs in as, whatever its clients call themselves.
        settings: More lines for its configuration.
    """
    assert PROGRAM is not None
    with psycopg.connect(server_url) as connection:
        host, port = connection.info.host, connection.info.port
    user, group = _identity(host)
    with tempfile.TemporaryDirectory(prefix="commandbus-pgbouncer-") as name:
        folder = Path(name)
        os.chown(folder, user, group)
        for _ in range(5):  # another program may take the free port before PgBouncer does
            listen_port = _free_port()
            filled = CONFIGURATION.format(host=host, port=port, role=role, listen_port=listen_port)
            (folder / "pgbouncer.ini").write_text(filled + "\n".join(settings) + "\n")
            with (folder / "log").open("w") as log:
                process = subprocess.Popen(
                    [PROGRAM, str(folder / "pgbouncer.ini")],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                    user=user, group=group, extra_groups=[] if os.geteuid() == 0 else None,
                )  # fmt: skip
            try:
                if _listens(process, listen_port):
                    yield PgBouncer(listen_port)
                    return
            finally:
                # It holds nothing that could be lost, and its polite signals differ between versions.
                process.kill()
                process.wait(timeout=30)
        raise AssertionError(f"PgBouncer did not start: {(folder / 'log').read_text()}")


def _identity(host: str) -> tuple[int, int]:
    """Return the user to run it as: not root, which it refuses, but one who may enter the socket's folder."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    owner = Path(host).stat().st_uid if host.startswith("/") else 0
    entry = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it accepts connections; false if it ended instead."""
    deadline = time.monotonic() + 30
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return process.poll() is None
    return False
