"""The name of the schema that has the tables: checked, and quoted for SQL that SQLAlchemy does not write."""

import re
from dataclasses import dataclass

from psycopg import sql

from commandbus_process.errors import InvalidInputError
from commandbus_process.tables import SCHEMA

_LONGEST = 63
"""In bytes. PostgreSQL cuts off what is longer, and would take two names for one."""
_DOLLARS = "$$"


def checked_schema(name: object) -> str:
    """Return the name, if a schema can have it. It is not quoted.

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


@dataclass(frozen=True)
class SchemaName:
    """A schema's name, for SQL text.

    Attributes:
        name: The name, not quoted.
    """

    name: str

    def __post_init__(self) -> None:
        """Check the name."""
        checked_schema(self.name)

    @property
    def identifier(self) -> str:
        """The name as SQL writes it before a table's."""
        return self.name if self.name == SCHEMA else sql.Identifier(self.name).as_string()

    @property
    def literal(self) -> str:
        """The name as a text in SQL."""
        return sql.Literal(self.name).as_string().strip()

    def fill(self, template: str, **others: str) -> str:
        """Put the name into SQL: `{schema}` becomes the identifier, and `{name}` the text.

        `str.format` would take the braces of `'{}'::jsonb` for its own. A body between two `$$` gets another mark if
        something that is put in has this one.

        Args:
            template: The SQL.
            others: More that is put in, by the name that stands in braces for it: SQL that is quoted already.
        """
        values = {"schema": self.identifier, "name": self.literal, **others}
        mark = _DOLLARS
        while any(mark in value for value in values.values()):
            mark = f"${mark.strip('$')}x$"
        filled = template.replace(_DOLLARS, mark)
        names = "|".join(values)
        return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], filled)
