"""The lists of columns, by who sets them and by what they hold. All are derived from the tables."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Column, DateTime, Table
from sqlalchemy.dialects.postgresql import JSONB

from commandbus_process.tables import SetBy, process, process_audit


def names(columns: Iterable[Column[Any]]) -> tuple[str, ...]:
    """Return the names of columns as plain strings.

    SQLAlchemy's names are instances of a subclass of `str`. Pydantic takes 20 times as long to write them as keys.
    """
    return tuple(str(column.name) for column in columns)


def _set_by(table: Table, *setters: SetBy) -> tuple[str, ...]:
    return names(column for column in table.c if not column.info["set_by"].isdisjoint(setters))


PROCESS_KEY = names(process.primary_key)
COMMAND_KEY = (*PROCESS_KEY, "command_id")

READ = _set_by(process, *SetBy)
"""The columns of a process that are read: all that somebody sets."""
SAVED = _set_by(process, SetBy.SAVE)
UPDATED = _set_by(process, SetBy.UPDATE)
WRITTEN_BY_UPDATE = _set_by(process, SetBy.UPDATE, SetBy.DATABASE)
"""The columns that an UPDATE of a process writes, with those that the database sets in it."""

LOGGED = _set_by(process_audit, SetBy.COMMAND, SetBy.REPLY)
ERASED = names(column for column in process.c if column.info["erased"])
"""The columns of a process that `erase` empties."""
ERASED_ENTRY = names(column for column in process_audit.c if column.info["erased"])
WRITTEN_BY_ERASE = (*ERASED, str(process.c.version.name))

ENTRY = tuple(name for name in LOGGED if name not in PROCESS_KEY)
REPLY = _set_by(process_audit, SetBy.REPLY)

_COLUMNS = (*process.c, *process_audit.c)
TIMES = frozenset(names(column for column in _COLUMNS if isinstance(column.type, DateTime)))
JSON = frozenset(names(column for column in _COLUMNS if isinstance(column.type, JSONB)))
"""Columns whose values are sent and read as JSON text."""

# The columns that are compared to recognise a redelivery. Times are not among them: a redelivered message is handled
# at another time.
SAME_PROCESS = tuple(name for name in UPDATED if name not in TIMES)
SAME_REPLY = tuple(name for name in REPLY if name not in TIMES)
SAME_COMMAND = tuple(name for name in ENTRY if name not in {*TIMES, *REPLY, *COMMAND_KEY})
"""The columns that are compared if two entries have the same command id."""
