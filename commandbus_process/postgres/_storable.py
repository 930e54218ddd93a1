"""Find texts that an encoding of the connection lacks, and explain errors about the server's limits."""

import codecs
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import psycopg
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from commandbus_process.errors import InvalidInputError

PROGRAM_LIMIT_EXCEEDED = "54000"
NOT_IN_ENCODING = frozenset({"22P05", "22021"})

# In characters. A shorter text cannot exceed a limit of the server: the lowest limit is 2,704 bytes, for an index row.
_LONG = 2000


def encodable_texts(connection: Connection, driver: psycopg.AsyncConnection[Any]) -> AbstractContextManager[None]:
    """Reject a text with a character that the client's or the database's encoding lacks, before it is sent.

    If the server found it, the caller's transaction would be aborted. Nearly every database uses UTF8, which has every
    character. Then this costs two look-ups. Encodings that Python does not know (EUC_TW, MULE_INTERNAL) are not
    checked.
    """
    status = driver.pgconn.parameter_status
    client, database = status(b"client_encoding"), status(b"server_encoding")
    if client == database == b"UTF8":
        return nullcontext()
    encodings = {"client": client, "database": database}
    return _checked(connection, {whose: name.decode() for whose, name in encodings.items() if name is not None})


@contextmanager
def _checked(connection: Connection, encodings: Mapping[str, str]) -> Generator[None]:
    def check(_connection: object, _cursor: object, _statement: str, parameters: object, *_: object) -> None:
        for name, text in _texts(parameters):
            for whose, encoding in encodings.items():
                if not _fits(text, encoding):
                    raise InvalidInputError(name, f"has a character that the {whose}'s encoding ({encoding}) lacks")

    event.listen(connection, "before_cursor_execute", check)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", check)


def limit_error(error: DBAPIError) -> InvalidInputError:
    """Return the error for a value that exceeds a limit of the server. The server's message quotes sizes, no values."""
    long = dict.fromkeys(name for name, text in _texts(error.params) if len(text) > _LONG)
    message = getattr(getattr(error.orig, "diag", None), "message_primary", None)
    return InvalidInputError(", ".join(long) or "arguments", f"exceeds a limit of PostgreSQL: {message}")


def _texts(parameters: object) -> Iterator[tuple[str, str]]:
    """Yield each text in the parameters of a statement, with the name of its argument."""
    if isinstance(parameters, Mapping):
        for name, value in cast("Mapping[str, object]", parameters).items():
            if isinstance(value, str):
                yield name.removeprefix("key_"), value


def _fits(text: str, encoding: str) -> bool:
    codec = _codec(encoding)
    if codec is None or text.isascii():
        return True
    try:
        codec.encode(text)
    except UnicodeEncodeError:
        return False
    return True


@cache
def _codec(encoding: str) -> codecs.CodecInfo | None:
    """Return Python's codec for an encoding of PostgreSQL; `None` if there is none, or nothing to check.

    There is nothing to check for SQL_ASCII: the server accepts any bytes, and psycopg sends UTF-8.
    """
    try:
        return codecs.lookup(encoding.replace("WIN", "cp").replace("KOI8", "koi8-"))
    except LookupError:
        return None
