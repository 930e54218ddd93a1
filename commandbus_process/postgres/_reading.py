"""From rows to what the repository returns.

The quick way trusts the database for what it guarantees (texts, ids, numbers, NOT NULL), reads what it does not know
(enumerations, JSON, time zones) column by column, and makes the objects directly; checking each field of each row again
took half of the time of a long list. A process that is read alone comes as one JSON array, which is read at once. Where
anything does not fit, the slow way checks row by row and says what.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from sqlalchemy import CursorResult

from commandbus_process._json import JSON_OBJECT
from commandbus_process._reasons import reason
from commandbus_process.errors import StoredDataError
from commandbus_process.models import (
    STAMPS,
    JsonObject,
    ProcessAuditEntry,
    ProcessFields,
    ProcessStatus,
    ReplyOutcome,
    RowStamps,
)
from commandbus_process.postgres import _statements

Row: TypeAlias = dict[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)

DOES_NOT_FIT = (KeyError, ValueError, OverflowError)
"""What the quick way meets where a row does not fit. `pydantic.ValidationError` is a `ValueError`."""


class Rows:
    """What a statement found: its columns by their names, each a value for each row."""

    def __init__(self, result: CursorResult[*tuple[Any, ...]]) -> None:
        names, rows = result.keys(), result.all()
        self.count = len(rows)
        self.columns: dict[str, Sequence[Any]]
        self.columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())

    def one_by_one(self) -> list[Row]:
        """Return each row by the names of its columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


def first_row(result: CursorResult[*tuple[Any, ...]]) -> Row | None:
    """Return the row that there is, or `None`."""
    rows = Rows(result).one_by_one()
    return rows[0] if rows else None


def json_object(text: str) -> JsonObject:
    """Turn stored JSON text into an object, quickly.

    Raises:
        ValueError: It is none, or it nests too deep.
    """
    value: object = from_json(text)
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 - a stored value that does not fit, as others do
    return cast("JsonObject", value)


# A number beyond floats is made infinity by the parser. As `jsonb` writes numbers without an exponent, it has at least
# as many digits as the largest float.
_DIGITS = 309
# It begins where no digit stands before: searched from each digit of a long run, 5 MB of them took 2.3 s.
_LONG_NUMBER = re.compile(rf"(?<!\d)\d{{{_DIGITS}}}")


def check_numbers(texts: Iterable[str | None]) -> None:
    """Look for numbers beyond floats in stored JSON.

    Raises:
        ValueError: There may be one.
    """
    for text in texts:
        # So many digits in a row are met at one of these places, which are few.
        if text is not None and any(map(str.isdigit, text[_DIGITS - 1 :: _DIGITS])) and _LONG_NUMBER.search(text):
            raise ValueError("has a number that may be beyond floats")


def _time(text: str) -> datetime:
    """Turn the text of a JSON string into a time, in UTC."""
    return datetime.fromisoformat(text[1:-1]).astimezone(UTC)


def _in_utc(texts: Iterable[str | None]) -> list[datetime | None]:
    return [None if text is None else _time(text) for text in texts]


def plain_times(row: Row) -> Row:
    """Return the row with its times as times. What is no time in Python stays a text, which its field refuses."""
    plain = dict(row)
    for name in _statements.TIMES & row.keys():
        text = row[name]
        if isinstance(text, str):
            plain[name] = text[1:-1]
            with suppress(ValueError, OverflowError):
                # It knows more zones than Pydantic: those of old times differ from UTC by seconds too.
                plain[name] = _time(text)
    return plain


def _json_objects(texts: Sequence[str | None]) -> list[JsonObject | None]:
    check_numbers(texts)
    return [None if text is None else json_object(text) for text in texts]


def _statuses(values: Iterable[str]) -> Iterable[ProcessStatus]:
    return map(_STATUSES.__getitem__, values)


def _outcomes(values: Iterable[str | None]) -> Iterable[ReplyOutcome | None]:
    return map(_OUTCOMES.__getitem__, values)


_STATUSES = {status.value: status for status in ProcessStatus}
_OUTCOMES: dict[str | None, ReplyOutcome | None] = {
    None: None,
    **{outcome.value: outcome for outcome in ReplyOutcome},
}

_READERS: Mapping[str, Callable[[Sequence[Any]], Iterable[Any]]] = {
    "status": _statuses,
    "created_at": _in_utc,
    "updated_at": _in_utc,
    "completed_at": _in_utc,
    "command_data": _json_objects,
    "sent_at": _in_utc,
    "reply_outcome": _outcomes,
    "reply_data": _json_objects,
    "received_at": _in_utc,
}


# What every Pydantic model has instead of attributes of its own.
_MODEL_ATTRIBUTES = ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


def _private(stamp: str) -> dict[str, Any]:
    return {STAMPS: RowStamps((stamp,))}


def objects_of(rows: Rows, classes: Iterable[type[ModelT]], read: Mapping[str, Iterable[Any]]) -> list[ModelT]:
    """Make an object of its class from each row; `read` has the columns that the caller has read itself.

    Raises:
        DOES_NOT_FIT: Something in a row does not.
    """
    if not rows.count:
        return []
    columns = dict[str, Iterable[Any]](rows.columns)
    stamps = columns.pop("stamp", None)
    privates = repeat(None) if stamps is None else map(_private, stamps)
    for name, column in rows.columns.items():
        if name in _READERS:
            columns[name] = _READERS[name](column)
    columns |= read
    names = tuple(columns)
    objects = [object.__new__(each) for each in classes]
    dicts = map(dict, map(zip, repeat(names), zip(*columns.values(), strict=True)))
    # Each object has a set of its own: a caller may add to it, or take away.
    attributes: tuple[Iterable[Any], ...] = dicts, map(set, repeat(names)), repeat(None), privates
    for name, values in zip(_MODEL_ATTRIBUTES, attributes, strict=True):
        # A loop in C: half of the time of one in Python.
        deque(map(object.__setattr__, objects, repeat(name), values), maxlen=0)
    return objects


_TIMES = tuple(name for name in _statements.FIELDS if _READERS.get(name) is _in_utc)


_READ_AS_ONE = (*_statements.FIELDS, "stamp")


def fields_of(text: str) -> Row:
    """Return the fields of one process from their JSON array.

    Raises:
        DOES_NOT_FIT: Something in it does not.
    """
    fields: Row = dict(zip(_READ_AS_ONE, from_json(text), strict=True))
    fields["status"] = _STATUSES[fields["status"]]
    for name in _TIMES:
        if fields[name] is not None:
            fields[name] = datetime.fromisoformat(fields[name]).astimezone(UTC)
    return fields


def unchecked_fields_of(text: str) -> Row:
    """Return what is in the JSON array of the fields of one process, as it is; times where they are times."""
    fields: Row = dict(zip(_READ_AS_ONE, from_json(text), strict=True))
    for name in _TIMES:
        with suppress(ValueError, TypeError):
            # It knows more zones than Pydantic: those of old times differ from UTC by seconds too.
            fields[name] = datetime.fromisoformat(fields[name])
    return fields


def object_of(fields: Row, of_class: type[ModelT], stamp: str) -> ModelT:
    """Make one process, of all of its fields and the stamp of its row."""
    made = object.__new__(of_class)
    for name, value in zip(_MODEL_ATTRIBUTES, (fields, set(fields), None, _private(stamp)), strict=True):
        object.__setattr__(made, name, value)
    return made


class Written(NamedTuple):
    """What the database sets when it writes a process."""

    version: int
    updated_at: datetime
    stamp: str


def read_written(result: CursorResult[*tuple[Any, ...]]) -> Written | None:
    """Return what was set, or `None` if nothing was written."""
    text: str | None = result.scalar()
    return None if text is None else written_from(text)


def written_from(text: str) -> Written:
    """Return what was set, from its JSON array."""
    version, updated_at, stamp = from_json(text)
    return Written(version, datetime.fromisoformat(updated_at).astimezone(UTC), stamp)


# An object that is updated again and again in one transaction remembers so many of its rows.
_MOST_STAMPS = 64


def set_stored(process: ProcessFields, written: Written, *, is_committed: bool) -> None:
    """Set on a process what the database has set; an assignment would check it once more.

    Args:
        process: What was written.
        written: What the database has set.
        is_committed: Whether the row is committed. Otherwise a rollback can bring back the row before it. The object
            still matches that one, and remembers it.
    """
    before = () if is_committed else stamps_of(process)[1 - _MOST_STAMPS :]
    fields: Row = {"version": written.version, "updated_at": written.updated_at}
    vars(process).update(fields)
    process.model_fields_set.update(fields)
    _set_stamps(process, RowStamps((*before, written.stamp)))


def stamps_of(process: ProcessFields) -> tuple[str, ...]:
    """Return the stamps of the rows that the object matches, newest last.

    The caller can have set `version` back, after a rollback for example: then the later rows do not count.
    """
    stamps: tuple[str, ...] = getattr(process, STAMPS, ())
    while stamps and stamps[-1].split(" ", 1)[0] != str(process.version):
        stamps = stamps[:-1]
    return stamps


def set_unlike_its_row(process: ProcessFields) -> None:
    """Note that the object has what its row has not, so that it cannot be written before it is read again."""
    _set_stamps(process, RowStamps((f"{process.version} 0",)))  # no row was written by transaction 0


def forget_row(process: ProcessFields) -> None:
    """Note that the object matches no row before the one that is set next."""
    _set_stamps(process, RowStamps())


def _set_stamps(process: ProcessFields, stamps: RowStamps) -> None:
    private = {**(process.__pydantic_private__ or {}), STAMPS: stamps}
    object.__setattr__(process, "__pydantic_private__", private)


def entries_of(domain: str, process_id: UUID, rows: Rows) -> list[ProcessAuditEntry]:
    """Return the entries of a process.

    Raises:
        StoredDataError: One has a value that this version does not know; the error names the command.
    """
    try:
        return objects_of(rows, [ProcessAuditEntry] * rows.count, {})
    except Exception:  # noqa: BLE001 - whatever it is, each row alone shows it
        return [entry_of(domain, process_id, row) for row in rows.one_by_one()]


def entry_of(domain: str, process_id: UUID, row: Row) -> ProcessAuditEntry:
    """Return the entry in a row that may have other columns too, checked throughout."""
    values = plain_times({name: row[name] for name in _statements.ENTRY})
    try:
        for name in ("command_data", "reply_data"):
            if values[name] is not None:
                values[name] = JSON_OBJECT.validate_json(values[name])
        return ProcessAuditEntry.model_validate(values)
    except ValidationError as error:
        # The original, which stays in __context__, quotes values; tracebacks do not print it then.
        raise StoredDataError(
            domain, process_id, reason(error), what=f"the stored entry of command {row['command_id']}"
        ) from None
