"""Turn one stored row into a process or an entry, and check each part of it. The error names what does not fit."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError

from commandbus_process._arguments import STORED_ENTRY, STORED_PROCESS
from commandbus_process._columns import ENTRY, JSON, TIMES
from commandbus_process._json import JSON_OBJECT, check_finite
from commandbus_process._reasons import explain
from commandbus_process._stamps import private_with
from commandbus_process._states import States
from commandbus_process.errors import StateTooNewError, StoredDataError, StoredStateError
from commandbus_process.models import JsonObject, ProcessAuditEntry, ProcessMetadata, StateT
from commandbus_process.tables import STATE_VERSION

Row: TypeAlias = dict[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)

# Where Pydantic keeps the fields and everything else of a model.
MODEL_ATTRIBUTES = ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


def utc_time(text: str) -> datetime:
    """Return the time in a text."""
    return datetime.fromisoformat(text).astimezone(UTC)


def quoted_time(text: str) -> datetime:
    """Return the time in the text of a JSON string."""
    return utc_time(text[1:-1])


def make_object(fields: Row, of_class: type[ModelT], private: dict[str, Any] | None) -> ModelT:
    """Create an object from fields that were checked."""
    made = object.__new__(of_class)
    for name, value in zip(MODEL_ATTRIBUTES, (fields, set(fields), None, private), strict=True):
        object.__setattr__(made, name, value)
    return made


def plain_row(row: Row, as_time: Callable[[str], datetime]) -> Row:
    """Return a row with its times converted. A time that Python cannot represent stays a text; a check rejects it."""
    plain = dict(row)
    for name in TIMES & row.keys():
        # `fromisoformat` knows offsets with seconds, which old times have. Pydantic does not.
        with suppress(ValueError, OverflowError, TypeError):
            plain[name] = as_time(row[name])
    return plain


def checked_json(stored: Any) -> JsonObject | None:  # noqa: ANN401 - what a damaged row has
    """Return the JSON object in a column, from its text or from its value in a JSON array.

    Raises:
        ValidationError: It is not a JSON object.
    """
    if stored is None:
        return None
    if not isinstance(stored, str):
        return JSON_OBJECT.validate_python(stored)
    value = JSON_OBJECT.validate_json(stored)
    check_finite(stored)
    return value


def read_process(states: States[StateT], row: Row) -> ProcessMetadata[StateT]:
    """Return the process in a row, whose state is JSON text. Check each part of it.

    Raises:
        StateTooNewError: The state has a newer version than the repository knows.
        StoredStateError: The state does not fit its type.
        StoredDataError: Another column has a value that this version does not know.
    """
    domain, process_id, process_type = row["domain"], row["process_id"], row["process_type"]
    try:
        state_type = states.find_type(process_type)
    except KeyError:
        why = "no state type is declared for this process type in state_type"
        raise StoredStateError(domain, process_id, process_type, "a declared type", why) from None
    found: int | None = row[STATE_VERSION]
    if found is not None and found > state_type.newest:
        raise StateTooNewError(domain, process_id, process_type, found, state_type.newest)
    try:
        state = state_type.read_checked(state_type.current(row["state"], found))
    except Exception as error:  # noqa: BLE001 - a model's validators may raise anything
        raise StoredStateError(domain, process_id, process_type, state_type.name, state_type.explain(error)) from None
    try:
        # Without the state: its own validators would run a second time.
        fields = {name: value for name, value in row.items() if name not in {"state", STATE_VERSION, "stamp"}}
        data = {name: checked_json(fields.pop(name)) for name in JSON & fields.keys()}
        checked = STORED_PROCESS.validate_python(fields)
    except ValidationError as error:
        raise StoredDataError(domain, process_id, explain(error)) from None
    return make_object({**checked, **data, "state": state}, state_type.metadata_type, private_with(row["stamp"]))


def read_entry(domain: str, process_id: UUID, row: Row) -> ProcessAuditEntry:
    """Return the entry in a row. Check each part of it. The row may have other columns, too.

    Raises:
        StoredDataError: It has a value that this version does not know.
    """
    values = plain_row({name: row[name] for name in ENTRY}, quoted_time)
    try:
        data = {name: checked_json(values.pop(name)) for name in JSON & values.keys()}
        checked = STORED_ENTRY.validate_python(values)
    except ValidationError as error:
        # `from None`: the original error quotes values. It stays in __context__, but tracebacks do not print it.
        raise StoredDataError(
            domain, process_id, explain(error), what=f"the stored entry of command {row['command_id']}"
        ) from None
    fields = {**checked, **data}
    return make_object({name: fields[name] for name in ENTRY}, ProcessAuditEntry, None)
