"""The name of the schema that has the tables, checked."""

from commandbus_process.errors import InvalidInputError

_LONGEST = 63
"""In bytes. PostgreSQL cuts off what is longer, and would take two names for one."""


def checked_schema(name: object) -> str:
    """Return the name, if a schema can have it. It is not quoted: what uses it quotes it.

    Raises:
        InvalidInputError: It is empty, too long, has a character that no name can have, or is the server's own.
    """
    if not isinstance(name, str):
        raise InvalidInputError("schema", f"must be a str, not {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInputError("schema", "has a character that cannot be encoded") from None
    if not name or "\0" in name:
        raise InvalidInputError("schema", "must not be empty or have a NUL character")
    if size > _LONGEST:
        raise InvalidInputError("schema", f"has {size} bytes; PostgreSQL cuts names off after {_LONGEST}")
    if name.startswith("pg_") or name == "information_schema":
        raise InvalidInputError("schema", "is the server's own")
    return name
