"""Check the arguments of the repository's methods, and turn them into columns."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_type_hints
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from commandbus_process._columns import ENTRY, JSON, SAVED, UPDATED
from commandbus_process._json import json_object_text
from commandbus_process._reasons import explain
from commandbus_process.errors import InvalidInputError, StoredDataError
from commandbus_process.filters import ProcessFilter
from commandbus_process.models import (
    JsonObject,
    Name,
    OptionalName,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    StepReply,
    UtcDatetime,
)
from commandbus_process.repository import OnUnreadable
from commandbus_process.tables import STATE_VERSION

NAME: TypeAdapter[str] = TypeAdapter(Name)
STORED_NAME: TypeAdapter[str] = TypeAdapter(OptionalName)  # other software may write an empty one
TIME: TypeAdapter[datetime] = TypeAdapter(UtcDatetime)
LIMIT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=2**31 - 1)])

CheckedT = TypeVar("CheckedT")


def _adapter(model: type[BaseModel], names: Iterable[str], *, is_stored: bool = False) -> TypeAdapter[dict[str, Any]]:
    """Return an adapter that checks the named fields of a model, and returns them as a dictionary.

    JSON fields are left out. They are checked when they are turned into text.

    Args:
        model: The model.
        names: The fields. The version of the state is left out, too: the repository knows it.
        is_stored: Whether the values come from the database. Other software may have written empty names.

    Raises:
        TypeError: A column has no field.
    """
    hints = get_type_hints(model, include_extras=True)
    names = [name for name in names if name != STATE_VERSION]
    missing = [name for name in names if name not in hints]
    if missing:
        raise TypeError(f"{model.__name__} has no field for the columns {', '.join(missing)}")
    fields = {name: hints[name] for name in names if name not in JSON}
    if is_stored:
        fields |= {name: OptionalName for name, hint in fields.items() if hint == Name}
    make: Any = TypedDict  # type checkers accept only a TypedDict with literal fields
    typed_dict: Any = make(model.__name__, fields)
    typed_dict.__pydantic_config__ = ConfigDict(hide_input_in_errors=True)
    return TypeAdapter(typed_dict)


_NEW_PROCESS = _adapter(ProcessMetadata, (*SAVED, "version"))
# The process type is not checked here, because other software may have written an empty one.
_CHANGED_PROCESS = _adapter(ProcessMetadata, (*UPDATED, "version"))
STORED_PROCESS = _adapter(ProcessMetadata, ProcessMetadata.model_fields, is_stored=True)
STORED_ENTRY = _adapter(ProcessAuditEntry, ENTRY, is_stored=True)
_LOGGED_ENTRY = _adapter(ProcessAuditEntry, ENTRY)
_REPLY = _adapter(StepReply, ("outcome", "received_at"))
_FILTER = {
    name: TypeAdapter[Any](hint)
    for name, hint in get_type_hints(ProcessFilter, include_extras=True).items()
    if name != "statuses"
}


def checked(adapter: TypeAdapter[CheckedT], field: str, value: CheckedT) -> CheckedT:
    """Return an argument as its adapter converts it: a time in UTC, for example.

    Raises:
        InvalidInputError: It has the wrong type, or cannot be stored.
    """
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        # `from None`: the original error quotes values. It stays in __context__, but tracebacks do not print it.
        raise InvalidInputError(field, explain(error)) from None


def check_uuid(field: str, value: UUID) -> None:
    """Reject what is not a UUID, for example the text of a UUID."""
    if not isinstance(value, UUID):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError(field, f"must be a UUID, not {type(value).__name__}")


def check_uuids(field: str, values: Iterable[UUID]) -> list[UUID]:
    """Return UUIDs as a list, in their order and without duplicates. Reject what is not a UUID."""
    if not isinstance(values, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError(field, f"must be an iterable of UUIDs, not {type(values).__name__}")
    given = list(values)
    for position, each in enumerate(given):
        check_uuid(f"{field}[{position}]", each)
    return list(dict.fromkeys(given))


def check_key(domain: str, process_id: UUID) -> None:
    """Reject what cannot be the key of a process."""
    checked(NAME, "domain", domain)
    check_uuid("process_id", process_id)


def check_process(process: object) -> None:
    """Reject what is not a process."""
    if not isinstance(process, ProcessMetadata):
        raise InvalidInputError("process", f"must be a ProcessMetadata, not {type(process).__name__}")


def check_loggable(entry: ProcessAuditEntry) -> None:
    """Reject an entry that cannot be logged: without a command type, with half a reply, or if it undoes itself."""
    if not isinstance(entry, ProcessAuditEntry):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError("entry", f"must be a ProcessAuditEntry, not {type(entry).__name__}")
    if entry.compensates is not None and entry.compensates == entry.command_id:
        raise InvalidInputError("entry.compensates", "is the entry's own command_id")
    if not entry.command_type:
        raise InvalidInputError("entry.command_type", "must not be empty in an entry that is logged")
    if entry.reply_outcome is None and (entry.reply_data is not None or entry.received_at is not None):
        raise InvalidInputError("entry.reply_outcome", "must be given with reply_data or received_at")


def _validated(argument: str, adapter: TypeAdapter[dict[str, Any]], fields: dict[str, Any]) -> dict[str, Any]:
    try:
        return adapter.validate_python(fields)
    except ValidationError as error:
        # `from None`: the original error quotes values. It stays in __context__, but tracebacks do not print it.
        raise InvalidInputError(argument, explain(error)) from None


def _columns(
    argument: str, model: BaseModel, adapter: TypeAdapter[dict[str, Any]], names: Iterable[str]
) -> dict[str, Any]:
    """Return columns of a model, JSON as text. The state is left out: only the repository knows its type.

    The fields are checked again, because `model_copy` and `model_construct` do not check them.
    """
    values = vars(model)
    given = {name: values[name] for name in names if name in values and name not in JSON}
    columns = _validated(argument, adapter, given)
    for name in names:
        if name in JSON and name != "state":
            columns[name] = _optional_json(values.get(name), f"{argument}.{name}")
    return columns


def new_process_columns(process: ProcessMetadata[Any]) -> dict[str, Any]:
    """Return the columns of a new process, without the state."""
    return _process_columns(process, _NEW_PROCESS, SAVED)


def changed_columns(process: ProcessMetadata[Any]) -> dict[str, Any]:
    """Return the columns that an update writes, without the state."""
    return _process_columns(process, _CHANGED_PROCESS, UPDATED)


def _process_columns(
    process: ProcessMetadata[Any], adapter: TypeAdapter[dict[str, Any]], names: Iterable[str]
) -> dict[str, Any]:
    columns = _columns("process", process, adapter, (*names, "version"))
    del columns["version"]  # compared, and not written
    return columns


def entry_columns(entry: ProcessAuditEntry) -> dict[str, Any]:
    """Return the columns of an entry. If its reply has no time, that is the current time."""
    columns = _columns("entry", entry, _LOGGED_ENTRY, ENTRY)
    if entry.reply_outcome is not None and columns["received_at"] is None:
        columns["received_at"] = datetime.now(UTC)
    return columns


def _optional_json(value: JsonObject | None, field: str) -> str | None:
    return None if value is None else json_object_text(value, field)


def reply_columns(
    argument: str, reply: ProcessAuditEntry | StepReply, causes: Sequence[ProcessAuditEntry] = ()
) -> dict[str, Any]:
    """Return the columns that record a reply.

    If the reply has no time, that is the current time or, if it is earlier, the first `sent_at` of the commands that
    the reply causes.

    Args:
        argument: The name of the reply in an error.
        reply: The reply.
        causes: The commands that are sent because of it.
    """
    if isinstance(reply, ProcessAuditEntry):
        if reply.reply_outcome is None:
            raise InvalidInputError(f"{argument}.reply_outcome", "must not be None in a reply")
        outcome, data, field = reply.reply_outcome, reply.reply_data, "reply_data"
    elif isinstance(reply, StepReply):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        outcome, data, field = reply.outcome, reply.data, "data"
    else:
        raise InvalidInputError(argument, f"must be a StepReply or a ProcessAuditEntry, not {type(reply).__name__}")
    check_uuid(f"{argument}.command_id", reply.command_id)
    fields = _validated(argument, _REPLY, {"outcome": outcome, "received_at": reply.received_at})
    return {
        "reply_outcome": fields["outcome"],
        "reply_data": _optional_json(data, f"{argument}.{field}"),
        "received_at": fields["received_at"] or min((datetime.now(UTC), *(entry.sent_at for entry in causes))),
    }


def as_entries(sent: object) -> list[ProcessAuditEntry]:
    """Return one or several entries as a list."""
    if isinstance(sent, ProcessAuditEntry):
        return [sent]
    if not isinstance(sent, Iterable):
        raise InvalidInputError("sent", f"must be one entry or an iterable of entries, not {type(sent).__name__}")
    entries = list(cast("Iterable[object]", sent))
    for position, entry in enumerate(entries):
        if not isinstance(entry, ProcessAuditEntry):
            raise InvalidInputError(f"sent[{position}]", f"must be a ProcessAuditEntry, not {type(entry).__name__}")
    return cast("list[ProcessAuditEntry]", entries)


def in_path(path: str, error: InvalidInputError) -> InvalidInputError:
    """Return the error with the argument's position in its field: `sent[1].command_data` for `entry.command_data`."""
    argument, _, field = error.field.partition(".")
    field = field if argument in {"entry", "process"} else error.field
    return InvalidInputError(f"{path}.{field}" if field else path, error.reason)


def checked_filter(wanted: ProcessFilter) -> dict[str, Any]:
    """Return the conditions of a filter that are not `None`, by their names, and its statuses sorted."""
    if not isinstance(wanted, ProcessFilter):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError("filter", f"must be a ProcessFilter, not {type(wanted).__name__}")
    statuses = ProcessStatus if wanted.statuses is None else wanted.statuses
    given: dict[str, Any] = {"statuses": sorted_statuses(statuses)}
    for name, adapter in _FILTER.items():
        value = checked(adapter, name, getattr(wanted, name))
        if value is not None:
            given[name] = value
    if "created_after" in given and given["created_after"] > given.get("created_before", given["created_after"]):
        raise InvalidInputError("created_after", "must not be later than created_before")
    return given


def only_known_types(wanted: str | None, known: Collection[str] | None) -> list[str] | None:
    """Return the process types to which a list is limited, because the repository can read no others.

    Args:
        wanted: The type in the filter, if any.
        known: The types that the repository can read; `None`: all.

    Raises:
        InvalidInputError: The repository cannot read the type in the filter.
    """
    if known is None or wanted in known:
        return None
    if wanted is not None:
        raise InvalidInputError("process_type", f"no state type is declared for {wanted!r} in state_type")
    return sorted(known)


def sorted_statuses(statuses: Iterable[ProcessStatus]) -> tuple[ProcessStatus, ...]:
    """Return the stored values, sorted and without duplicates.

    So the same set of statuses always is the same statement. The fewer statements there are, the more are prepared.
    """
    if isinstance(statuses, str):
        raise InvalidInputError("statuses", f"must be a collection of statuses, such as [{statuses!r}]")
    try:
        return tuple(sorted({ProcessStatus(status) for status in statuses}))
    except (ValueError, TypeError):
        # The original error quotes what was given, which may be a whole process.
        names = ", ".join(ProcessStatus)
        raise InvalidInputError("statuses", f"must be a collection of statuses, each one of {names}") from None


def unreadable_handler(on_unreadable: OnUnreadable) -> Callable[[StoredDataError], object]:
    """Return the function to call with the error about a row that cannot be read."""
    if callable(on_unreadable):
        return on_unreadable
    if on_unreadable == "skip":
        return _skip
    if on_unreadable == "raise":
        return _raise
    raise InvalidInputError("on_unreadable", 'must be "raise", "skip" or a function that takes the error')


def _skip(error: StoredDataError) -> None:
    pass


def _raise(error: StoredDataError) -> NoReturn:
    try:
        raise error
    finally:
        del error  # otherwise the error, its traceback and this frame would refer to each other
