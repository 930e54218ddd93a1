"""A primary and its standby, which take turns: one is killed, the other one promoted, and a new standby is built."""

import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from tests.faults.servers import KillableServer
from tests.support.databases import NEWEST

_PATIENCE = 60.0  # seconds; each of these steps takes less than one
# What is killed here is a server, not its operating system, so nothing depends on the disk. A commit waits for the
# other server, so there are writes that no client knows of all the same.
_SETTINGS = {"fsync": "off"}
_PROMOTE = "SELECT pg_promote(wait_seconds => 60)"


class Replicas:
    """Two embedded servers, of which one is the primary and the other one its standby.

    Attributes:
        primary: Takes the writes.
        standby: Has a copy, and answers reads.
        is_synchronous: Whether a commit waits until the standby has it.
        application_url: The application's way in, with both servers as hosts: whichever takes writes.
    """

    def __init__(self, folder: Path, version: int = NEWEST) -> None:
        self._folders = [folder / "a", folder / "b"]
        for each in self._folders:
            each.mkdir()
        self.primary = KillableServer(self._folders[0], version)
        self._version = version
        self._is_cut = False
        self.is_synchronous = False
        self._standby: KillableServer | None = None

    @property
    def standby(self) -> KillableServer:
        assert self._standby is not None
        return self._standby

    @property
    def application_url(self) -> str:
        return self.hosts("read-write")

    def hosts(self, session: str) -> str:
        """The application's way in, with both servers as hosts, in the order of their folders.

        Args:
            session: Which one of them will do (`target_session_attrs` of libpq).
        """
        servers = sorted((self.primary, self.standby), key=lambda server: server.socket)
        hosts, ports = (",".join(each) for each in zip(*((host(each), "5432") for each in servers), strict=True))
        return (
            make_url(self.primary.application_url)
            .update_query_dict({"host": hosts, "port": ports, "target_session_attrs": session})
            .render_as_string(hide_password=False)
        )

    def start(self) -> None:
        """Start the primary, make the schema in it, and give it a standby. Replication is asynchronous."""
        self.primary.start(**_SETTINGS)
        self.primary.prepare()
        self.add_standby()

    @property
    def is_whole(self) -> bool:
        """Whether both run, and the standby receives what the primary writes."""
        return self._standby is not None and self._standby.is_started and not self._is_cut

    def add_standby(self) -> None:
        """Build a standby from the primary, which goes on working, and return when it has what the primary has."""
        if self._standby is None:
            self._standby = KillableServer(self._folders[1], self._version, copy_of=self.primary)
        else:
            self._standby.stop(at_once=True)  # after `cut`
            self._standby.copy(self.primary)
        self._is_cut = False
        self._standby.start(**_SETTINGS)
        self.catch_up()

    def set_synchronous(self, *, synchronous: bool) -> None:
        """Set whether a commit waits until the standby has it. Return when all does that was acknowledged before."""
        names = "*" if synchronous else ""
        self.is_synchronous = synchronous
        configure(self.primary, synchronous_standby_names=names)
        # That ended with a new session that has the setting, so the postmaster has it, and has told the checkpointer,
        # which lets commits wait from its next round on. A checkpoint is a round. It may have been in one already.
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            connection.execute("CHECKPOINT")
        if synchronous:
            self.catch_up()

    def catch_up(self) -> None:
        """Return when the standby has all that the primary has written until now, and shows it to readers."""
        flush(self.primary)
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            [written] = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or [None]
        until(self.primary, "SELECT count(*) = 1 FROM pg_stat_replication WHERE flush_lsn >= %s::pg_lsn", written)
        until(self.standby, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written)

    def cut(self) -> None:
        """Let the standby receive nothing any more; return when the primary knows. It goes on to answer reads."""
        self._is_cut = True
        configure(self.standby, primary_conninfo="")
        until(self.primary, "SELECT count(*) = 0 FROM pg_stat_replication")

    def fail_over(self) -> None:
        """Kill the primary and promote the standby. Then there is one server: `add_standby` makes it two again."""
        self.primary.kill()
        self.promote()

    def promote(self) -> None:
        """Promote the standby, whose primary is dead."""
        with psycopg.connect(self.standby.url, autocommit=True) as connection:
            assert connection.execute(_PROMOTE).fetchone() == (True,)
        self.primary, self._standby = self.standby, self.primary
        self.is_synchronous = False

    def stop(self) -> None:
        """Shut down both, and remove what they keep outside of their folders."""
        for server in (self._standby, self.primary):
            if server is not None:
                server.stop(at_once=True)
                server.remove()


@contextmanager
def replicas(version: int = NEWEST) -> Generator[Replicas]:
    """Give a pair that is not started yet; stop it afterwards and remove all that it had."""
    folder = Path(tempfile.mkdtemp(prefix="commandbus-pair-"))
    try:
        pair = Replicas(folder, version)
        try:
            yield pair
        finally:
            pair.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def host(server: KillableServer) -> str:
    """The folder of the server's socket, which is a host for libpq."""
    return str(server.socket.parent)


def configure(server: KillableServer, **settings: str) -> None:
    """Change settings of a server, primary or standby, and return when new sessions have them."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        connection.execute("SELECT pg_reload_conf()")
    for name, value in settings.items():
        until(server, "SELECT current_setting(%s) = %s", name, value)


def flush(server: KillableServer) -> None:
    """Write what a primary has not written yet. What no commit needs would wait for some seconds, and so would we."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("SELECT pg_logical_emit_message(true, 'flush', '')")


def until(server: KillableServer, question: str, *values: Any) -> None:
    """Return when the server answers a question with true, each time in a new session."""
    wait_for(lambda: _answer(server, question, values), question)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


def _answer(server: KillableServer, question: str, values: tuple[Any, ...]) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(server.url, autocommit=True) as connection:
        row = connection.execute(question.encode(), values).fetchone()
        return row is not None and row[0] is True
    return False
