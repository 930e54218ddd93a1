"""Read an event log: a CSV file with the column names of XES, the interchange format of process mining."""

import codecs
import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

CASE_ID = "case:concept:name"
ACTIVITY = "concept:name"
TIME = "time:timestamp"
TRANSITION = "lifecycle:transition"
"""Optional: how the step ended."""

_REQUIRED = (CASE_ID, ACTIVITY, TIME)
_CASE_PREFIX = "case:"
_LONGEST_ACTIVITY = 255  # it becomes the name of a step


class EventLogError(Exception):
    """The log cannot be used. The message names the file and, if possible, the line and the column."""

    def __init__(self, path: Path, problem: str, *, line: int | None = None, column: str | int | None = None) -> None:
        place = [str(path)]
        if line is not None:
            place.append(f"line {line}")
        if column is not None:
            place.append(f"column {column!r}")
        super().__init__(f"{', '.join(place)}: {problem}")


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the log. Empty cells are left out of the attributes."""

    activity: str
    time: datetime
    transition: str
    case_attributes: dict[str, str]
    """The columns that begin with `case:`, without that prefix."""
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """All events of one case, sorted by time. Equal times are in the order of the file."""

    case_id: str
    events: tuple[Event, ...]


def read_event_log(path: Path) -> list[Case]:
    """Read and check the whole log, so that a malformed log is found before anything is imported.

    Returns:
        The cases, in the order in which the file first names them. There is at least one. Each has at least one event.

    Raises:
        EventLogError: The file cannot be read, or is malformed.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe does not work either, because the log is read twice
            raise EventLogError(path, "is a folder or a device, not a file")
        with path.open("rb") as file:
            return _cases(path, _rows(path, file))
    except OSError as error:
        raise EventLogError(path, f"cannot be read: {error.strerror}") from error


def _rows(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the number of the line on which it begins."""
    # A byte that is not UTF-8 becomes a lone surrogate. _check_text finds it when the column is known.
    reader = csv.reader((line.decode(errors="surrogateescape") for line in _without_mark(lines)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "; is a quotation mark opened here and never closed?" if "end of data" in str(error) else ""
            raise EventLogError(path, f"is not CSV: {error}{hint}", line=line) from error
        if row:
            yield line, row


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Drop the byte order mark with which some programs begin UTF-8 files."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _cases(path: Path, rows: Iterator[tuple[int, list[str]]]) -> list[Case]:
    nothing: tuple[int, list[str]] = (1, [])
    line, header = next(rows, nothing)
    _check_header(path, line, header)
    events: dict[str, list[Event]] = {}
    for line, row in rows:
        case_id, event = _event(path, line, header, row)
        events.setdefault(case_id, []).append(event)
    if not events:
        raise EventLogError(path, "there are no events after the header", line=line + 1, column=CASE_ID)
    return [Case(case_id, tuple(sorted(of_case, key=lambda event: event.time))) for case_id, of_case in events.items()]


def _check_header(path: Path, line: int, header: Sequence[str]) -> None:
    if not header:
        raise EventLogError(path, "is missing, because the file is empty", line=line, column=CASE_ID)
    for position, name in enumerate(header):
        _check_text(path, line, position + 1, name)
        if name in header[:position]:
            raise EventLogError(path, "is in the header twice", line=line, column=name)
    for name in _REQUIRED:
        if name not in header:
            found = ", ".join(header)
            raise EventLogError(
                path, f"is missing; the header, separated by commas, has {_quoted(found)}", line=line, column=name
            )


def _event(path: Path, line: int, header: Sequence[str], row: Sequence[str]) -> tuple[str, Event]:
    if len(row) != len(header):
        column = header[len(row)] if len(row) < len(header) else len(header) + 1
        problem = f"the row has {len(row)} fields, and the header has {len(header)}"
        raise EventLogError(path, problem, line=line, column=column)
    cells = dict(zip(header, row, strict=True))
    for name, cell in cells.items():
        _check_text(path, line, name, cell)
    for name in _REQUIRED:
        if not cells[name].strip():
            raise EventLogError(path, "is empty", line=line, column=name)
    activity = cells[ACTIVITY]
    if len(activity) > _LONGEST_ACTIVITY:
        problem = f"has {len(activity)} characters; the maximum is {_LONGEST_ACTIVITY}"
        raise EventLogError(path, problem, line=line, column=ACTIVITY)
    time = _time(path, line, cells[TIME].strip())
    others = {name: cell for name, cell in cells.items() if cell and name not in {*_REQUIRED, TRANSITION}}
    return cells[CASE_ID], Event(
        activity=activity,
        time=time,
        transition=cells.get(TRANSITION, ""),
        case_attributes={
            name.removeprefix(_CASE_PREFIX): cell for name, cell in others.items() if name.startswith(_CASE_PREFIX)
        },
        attributes={name: cell for name, cell in others.items() if not name.startswith(_CASE_PREFIX)},
    )


def _check_text(path: Path, line: int, column: str | int, text: str) -> None:
    """Reject bytes that are not UTF-8, and text that PostgreSQL cannot store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        problem = f"has the byte {byte:#04x}, which is not UTF-8; save the file in that encoding"
        raise EventLogError(path, problem, line=line, column=column) from None
    if "\0" in text:
        raise EventLogError(path, "has a NUL character, which PostgreSQL cannot store", line=line, column=column)


def _time(path: Path, line: int, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        problem = f"{_quoted(text)} is not a time in ISO 8601, such as 2024-05-31T13:45:00+02:00"
        raise EventLogError(path, problem, line=line, column=TIME) from None
    if time.tzinfo is None:
        problem = f"{_quoted(text)} has no offset from UTC, such as +02:00 or Z, so it could be any of 24 hours"
        raise EventLogError(path, problem, line=line, column=TIME)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        problem = f"{_quoted(text)} is not in the years 1 to 9999 of UTC"
        raise EventLogError(path, problem, line=line, column=TIME) from None


def _quoted(text: str, longest: int = 100) -> str:
    return repr(text if len(text) <= longest else f"{text[:longest]}…")
