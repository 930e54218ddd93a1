"""Cursors: texts that name a position in a list. They can stand in a URL, and fit only the list that they came from."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from commandbus_process.errors import InvalidInputError
from commandbus_process.postgres._listing import Listing

_VERSION = b"1"
_MARK_LENGTH = 12  # bytes: enough that two lists do not have the same mark by chance
_TIME = re.compile(
    r"(?P<year>(?!0+-)\d{4,6})"
    r"(?P<rest>-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?[+-](0\d|1[0-5]):[0-5]\d(:[0-5]\d)?)"
    r"(?P<era> BC)?",
    re.ASCII,
)
"""How the server writes a time in JSON. It knows no year 0, and no offset of 16 hours or more."""
_FIRST_DATE, _LAST_DATE = (-4713, 11, 24), (294276, 12, 31)
_DAMAGED = "is not a cursor of this library, or is damaged"


def fingerprint(listing: Listing, kind: str, **order: Any) -> bytes:  # noqa: ANN401 - whatever sets the order
    """Return a mark that is the same for the same list only: its filter, its kind, and its order."""
    described = [kind, listing.statuses, sorted(listing.parameters.items()), sorted(order.items())]
    return hashlib.sha256(json.dumps(described, default=str).encode()).digest()[:_MARK_LENGTH]


def encode(mark: bytes, key: str, *ids: UUID) -> str:
    """Return the cursor of a row.

    Args:
        mark: The list's mark.
        key: The row's sort key, as the database writes it. So no time is rounded, and `infinity` is possible.
        ids: The ids that sort rows with the same key.
    """
    parts = (_VERSION, mark, *(each.bytes for each in ids), key.encode())
    return base64.urlsafe_b64encode(b"".join(parts)).rstrip(b"=").decode()


def decode(mark: bytes, cursor: str, ids: int = 1) -> tuple[str, list[UUID]]:
    """Return the key and the ids of a row from its cursor.

    Args:
        mark: The list's mark.
        cursor: The cursor.
        ids: The number of ids.

    Raises:
        InvalidInputError: It is damaged, of another list, or of a newer version of this library.
    """
    try:
        raw = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, found, rest = raw[:1], raw[1 : 1 + _MARK_LENGTH], raw[1 + _MARK_LENGTH :]
        found_ids = [UUID(bytes=rest[start : start + 16]) for start in range(0, 16 * ids, 16)]
        key = rest[16 * ids :].decode()
        _check_time(key)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInputError("after", _DAMAGED) from None
    if version != _VERSION:
        raise InvalidInputError("after", "is a cursor of another version of this library")
    if found != mark:
        raise InvalidInputError("after", "belongs to another filter or order")
    return key, found_ids


def _check_time(text: str) -> None:
    """Reject what the server could not read as a time: its error would abort the caller's transaction.

    The server's times are from 4714-11-24 BC to 294276-12-31 (src/include/datatype/timestamp.h in PostgreSQL), and
    Python's years from 1 to 9999. So the time is looked at in a year that has the same leap day.

    Raises:
        ValueError: It is not a time.
    """
    if text in {"infinity", "-infinity"}:
        return
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise ValueError(_DAMAGED)
    year = int(parts["year"]) if parts["era"] is None else 1 - int(parts["year"])
    known_year = 2000 + year % 400  # the calendar repeats itself after 400 years
    in_utc = datetime.fromisoformat(f"{known_year}{parts['rest']}").astimezone(UTC)
    date = (year + in_utc.year - known_year, in_utc.month, in_utc.day)
    if not _FIRST_DATE <= date <= _LAST_DATE:
        raise ValueError(_DAMAGED)
