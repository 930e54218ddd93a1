"""Arguments, checked and turned into the parameters of statements."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_type_hints
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from commandbus_process._json import json_array, json_object_text, json_row
from commandbus_process._reasons import reason
from commandbus_process.errors import InvalidInputError, StoredDataError
from commandbus_process.models import (
    EntryFields,
    JsonObject,
    Name,
    OptionalName,
    ProcessAuditEntry,
    ProcessFields,
    ProcessMetadata,
    ProcessStatus,
    StepReply,
    UtcDatetime,
)
from commandbus_process.postgres._statements import JSON_COLUMNS, STATE_CHANGES
from commandbus_process.repository import OnUnreadable

NAME: TypeAdapter[str] = TypeAdapter(Name)
TIME: TypeAdapter[datetime] = TypeAdapter(UtcDatetime)
LIMIT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=2**31 - 1)])

CheckedT = TypeVar("CheckedT")


def _fields_of(model: type[BaseModel], names: Collection[str] | None = None) -> TypeAdapter[dict[str, Any]]:
    """Return what checks fields of a model, all or the named ones, and gives them as a dictionary."""
    hints = get_type_hints(model, include_extras=True)
    make: Any = TypedDict  # type checkers want one that is written down
    wanted = [name for name in model.model_fields if names is None or name in names]
    typed_dict: Any = make(model.__name__, {name: hints[name] for name in wanted})
    typed_dict.__pydantic_config__ = ConfigDict(hide_input_in_errors=True)
    return TypeAdapter(typed_dict)


_PROCESS_FIELDS = _fields_of(ProcessFields)
_ENTRY_FIELDS = _fields_of(EntryFields)
# The type and the version are compared, not written: other software may have written a type that is empty.
_CHANGED_FIELDS = _fields_of(ProcessFields, (*STATE_CHANGES, "version"))
STORED_NAME: TypeAdapter[str] = TypeAdapter(OptionalName)
_REPLY_FIELDS = _fields_of(StepReply, ("command_id", "outcome", "received_at"))


def checked(adapter: TypeAdapter[CheckedT], field: str, value: CheckedT) -> CheckedT:
    """Return an argument as its type has it, a time in UTC for example.

    Raises:
        InvalidInputError: It is not of its type, or cannot be stored.
    """
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        # The original, which stays in __context__, quotes values; tracebacks do not print it then.
        raise InvalidInputError(field, reason(error)) from None


def checked_uuid(field: str, value: UUID) -> UUID:
    """Return an argument that is a UUID, and not the text of one."""
    if not isinstance(value, UUID):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError(field, f"must be a UUID, not {type(value).__name__}")
    return value


def found_by(domain: str, process_id: UUID) -> dict[str, Any]:
    """Return the parameters that find a process."""
    return {
        "key_domain": checked(NAME, "domain", domain),
        "key_process_id": checked_uuid("process_id", process_id),
    }


def unreadable_handler(on_unreadable: OnUnreadable) -> Callable[[StoredDataError], object]:
    """Return what to do with the error about a row that cannot be read."""
    if callable(on_unreadable):
        return on_unreadable
    if on_unreadable == "skip":
        return _skip
    if on_unreadable == "raise":
        return _raise
    raise InvalidInputError("on_unreadable", 'must be "raise", "skip" or something to call with the error')


def _skip(error: StoredDataError) -> None:
    pass


def _raise(error: StoredDataError) -> NoReturn:
    try:
        raise error
    finally:
        del error  # else it, its traceback and this frame would refer to each other


def status_values(statuses: Collection[ProcessStatus]) -> tuple[str, ...]:
    """Return the stored values, each once and always in one order: the fewer statements, the more are prepared."""
    if isinstance(statuses, str):
        raise InvalidInputError("statuses", f"must be a collection of statuses, such as [{statuses!r}]")
    try:
        return tuple(sorted({ProcessStatus(status).value for status in statuses}))
    except ValueError as error:
        raise InvalidInputError("statuses", str(error)) from error


def checked_fields(model: ProcessFields | EntryFields, names: Collection[str]) -> dict[str, Any]:
    """Return the named fields, checked once more: `model_copy` and `model_construct` do not check them."""
    is_process = isinstance(model, ProcessFields)
    try:
        fields = (_PROCESS_FIELDS if is_process else _ENTRY_FIELDS).validate_python(vars(model))
    except ValidationError as error:
        # The original, which stays in __context__, quotes values; tracebacks do not print it then.
        raise InvalidInputError("process" if is_process else "entry", reason(error)) from None
    return {name: fields[name] for name in names if name in fields}


def check_loggable(entry: ProcessAuditEntry) -> None:
    """Refuse an entry that names no command, or has half a reply."""
    if not isinstance(entry, ProcessAuditEntry):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError("entry", f"must be a ProcessAuditEntry, not {type(entry).__name__}")
    if entry.compensates is not None and entry.compensates == entry.command_id:
        raise InvalidInputError("entry.compensates", "is the entry's own command")
    if not entry.command_type:
        raise InvalidInputError("entry.command_type", "must not be empty in an entry that is logged")
    if entry.reply_outcome is None and (entry.reply_data is not None or entry.received_at is not None):
        raise InvalidInputError("entry.reply_outcome", "must be given with reply_data or received_at")


def entry_values(entry: ProcessAuditEntry, names: Collection[str]) -> dict[str, Any]:
    """Return the named columns of an entry, data as JSON text; a reply without a time was received now."""
    values = checked_fields(entry, names)
    for name in names:
        if name in JSON_COLUMNS:
            values[name] = _optional_json(getattr(entry, name), f"entry.{name}")
    if entry.reply_outcome is not None and values["received_at"] is None:
        values["received_at"] = datetime.now(UTC)
    return values


def _optional_json(value: JsonObject | None, field: str) -> str | None:
    return None if value is None else json_object_text(value, field)


def reply_values(
    argument: str, reply: ProcessAuditEntry | StepReply, causes: Sequence[ProcessAuditEntry] = ()
) -> dict[str, Any]:
    """Return the parameters that record a reply, to the step that its command id names.

    A reply without a time was received now, but before the commands that it causes were sent.

    Args:
        argument: What to call the reply in an error.
        reply: What came.
        causes: The commands that are sent because of it.
    """
    if isinstance(reply, ProcessAuditEntry):
        if reply.reply_outcome is None:
            raise InvalidInputError(f"{argument}.reply_outcome", "must be given in a reply")
        reply = StepReply.model_construct(
            command_id=reply.command_id,
            outcome=reply.reply_outcome,
            data=reply.reply_data,
            received_at=reply.received_at,
        )
    elif not isinstance(reply, StepReply):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidInputError(argument, f"must be a StepReply or a ProcessAuditEntry, not {type(reply).__name__}")
    try:
        fields = _REPLY_FIELDS.validate_python({name: value for name, value in vars(reply).items() if name != "data"})
    except ValidationError as error:
        raise InvalidInputError(argument, reason(error)) from None
    received_at = fields["received_at"] or min((datetime.now(UTC), *(entry.sent_at for entry in causes)))
    return {
        "key_command_id": checked_uuid(f"{argument}.command_id", reply.command_id),
        "reply_outcome": fields["outcome"],
        "reply_data": _optional_json(reply.data, f"{argument}.reply_data"),
        "received_at": received_at,
    }


def sent_entries(sent: object) -> list[ProcessAuditEntry]:
    """Return one or several entries as a list."""
    if isinstance(sent, ProcessAuditEntry):
        return [sent]
    if not isinstance(sent, Iterable):
        raise InvalidInputError("sent", f"must be an entry or several, not {type(sent).__name__}")
    entries = list(cast("Iterable[object]", sent))
    for position, entry in enumerate(entries):
        if not isinstance(entry, ProcessAuditEntry):
            raise InvalidInputError(f"sent[{position}]", f"must be a ProcessAuditEntry, not {type(entry).__name__}")
    return cast("list[ProcessAuditEntry]", entries)


def check_process(process: object) -> None:
    """Refuse what is no process."""
    if not isinstance(process, ProcessMetadata):
        raise InvalidInputError("process", f"must be a ProcessMetadata, not {type(process).__name__}")


def changed_fields(process: ProcessFields, names: Collection[str]) -> dict[str, Any]:
    """Return the named fields, checked, and nothing else: other software may have written the rest."""
    try:
        fields = _CHANGED_FIELDS.validate_python({name: getattr(process, name) for name in (*names, "version")})
    except ValidationError as error:
        raise InvalidInputError("process", reason(error)) from None
    return {name: fields[name] for name in names if name in fields}


def sent_values(entries: Sequence[ProcessAuditEntry], names: Collection[str]) -> dict[str, Any]:
    """Return the parameters that log entries together with something else: one as columns, several as rows of JSON."""
    rows: list[dict[str, Any]] = []
    seen: set[UUID] = set()
    for position, entry in enumerate(entries):
        try:
            check_loggable(entry)
            rows.append(entry_values(entry, names))
        except InvalidInputError as error:
            raise within(f"sent[{position}]", error) from error
        if entry.command_id in seen:
            raise InvalidInputError(f"sent[{position}].command_id", "is that of another entry in sent")
        seen.add(entry.command_id)
    if len(rows) == 1:
        return {f"sent_{name}": value for name, value in rows[0].items()}
    texts = (json_row({"position": position, **row}, JSON_COLUMNS) for position, row in enumerate(rows))
    return {"sent": json_array(texts), "sent_count": len(rows)}


def within(path: str, error: InvalidInputError) -> InvalidInputError:
    """Return the error with where the argument stands: `sent[1].command_data` for `entry.command_data`."""
    argument, _, field = error.field.partition(".")
    field = field if argument in {"entry", "process"} else error.field
    return InvalidInputError(f"{path}.{field}" if field else path, error.reason)
