"""The state of a process between Python and JSON text: which type it has, how it is written, how it is read."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from typing import Any, Generic, cast
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import override

from commandbus_process._json import JSON_OBJECT, as_stored, check_finite, check_text, json_object_text
from commandbus_process._reasons import declared_names, reason
from commandbus_process._state_difference import Difference, difference
from commandbus_process._state_types import Declared, writer
from commandbus_process.errors import InvalidInputError, StoredDataError, StoredStateError
from commandbus_process.models import JsonObject, ProcessFields, ProcessMetadata, StateT
from commandbus_process.postgres._reading import (
    Row,
    Rows,
    check_numbers,
    fields_of,
    json_object,
    object_of,
    objects_of,
    plain_times,
    unchecked_fields_of,
)

# A model's validators and serialisers may raise anything. What they say, and Pydantic's messages, may quote a state. So
# the errors here are raised `from None`: the original stays in `__context__`, which tracebacks do not print then.


class _StateType:
    """One declared type of state.

    Args:
        declared: The type.
        what: What to call it in an error.

    Raises:
        TypeError: It is no type that a state can have.
    """

    def __init__(self, declared: object, what: str = "state_type") -> None:
        self._declared = Declared(declared, what)
        self.name = self._declared.name
        generic: Any = ProcessMetadata
        self.metadata_type: type[ProcessMetadata[Any]] = generic[declared]
        adapters = self._declared.adapters()
        self._adapter = adapters[0]
        # A round trip leaves out what a model computes, which it may forbid to be given. A warning is about a value
        # that is not of its field's type.
        self._dump = partial(writer(self._adapter), round_trip=True, warnings="error")
        # Names as well as aliases, since the model's own configuration decides which of them it writes.
        self._readers = [partial(each.validate_json, by_alias=True, by_name=True) for each in adapters]

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(declared_names(self._adapter.core_schema))

    @property
    def read(self) -> Callable[[str], object]:
        """What turns JSON text into a state."""
        return self._readers[0]

    def read_checked(self, text: str) -> object:
        """Turn JSON text into a state, or raise what `reason` can explain."""
        return self.read(text)

    def reason(self, error: Exception) -> str:
        """Say why a state could not be read, without anything of it."""
        return reason(error, self._names)

    def write(self, state: object) -> str:
        """Turn a state into JSON text that is sure to become the same state again."""
        refusal = self._declared.refusal(type(state))
        if refusal is not None:
            raise InvalidInputError("state", refusal)
        try:
            encoded = self._dump(state)
        except Exception as error:  # noqa: BLE001 - see above
            raise InvalidInputError("state", self._why_not_written(state, error)) from None
        text = check_text(encoded, "state")
        try:
            stored = as_stored(text)
        except ValueError as error:
            raise InvalidInputError("state", str(error)) from None
        for read in self._readers:
            try:
                found = read(stored)
                different = difference(state, found)
                same = different is None and self._dump(found) == encoded
            except Exception as error:  # noqa: BLE001 - see above
                why = f"could not be read back as {self.name}: {self.reason(error)}"
                raise InvalidInputError("state", why) from None
            if not same:
                raise self._not_the_same(state, found, different)
        return text

    def _why_not_written(self, state: object, error: Exception) -> str:
        if "surrogates not allowed" in str(error):
            return "contains a lone surrogate, which UTF-8 cannot encode"
        # Pydantic's message names the field and quotes its value. So each field is tried alone.
        own_class: Any = type(state)
        adapter: TypeAdapter[Any] = TypeAdapter(own_class)
        for name in _field_names(state):
            try:
                adapter.dump_json(state, include={name}, round_trip=True, warnings="error")
            except Exception:  # noqa: BLE001 - see above
                kind = type(getattr(state, name, None)).__name__
                return f"cannot be written as {self.name}: look at {name}, which is {kind}"
        return f"cannot be written as {self.name} ({type(error).__name__})"

    def _not_the_same(self, state: object, found: object, different: Difference | None) -> InvalidInputError:
        if type(found) is not type(state):
            return InvalidInputError(
                "state",
                f"is {type(state).__name__} but could come back as {type(found).__name__}, since they cannot be told "
                "apart; give each a field that names it, such as kind: Literal['order']",
            )
        if different is None:
            return InvalidInputError("state", "would be written as another text when it has been read back")
        path = (str(each) if isinstance(each, int) or each in self._names else "*" for each in different.path)
        return InvalidInputError(".".join(("state", *path)), different.what)


def _field_names(state: object) -> list[str]:
    if isinstance(state, BaseModel):
        return list(type(state).model_fields)
    return [each.name for each in fields(state)] if is_dataclass(state) and not isinstance(state, type) else []


class _JsonState(_StateType):
    """States that are JSON objects, where no type is declared."""

    def __init__(self) -> None:
        super().__init__(JsonObject)
        self.name = "a JSON object"
        self.metadata_type = ProcessMetadata

    @property
    @override
    def read(self) -> Callable[[str], object]:
        return json_object

    @override
    def read_checked(self, text: str) -> object:
        return JSON_OBJECT.validate_json(text)

    @override
    def write(self, state: object) -> str:
        return json_object_text(state, "state")


class _SameForAll(dict[str, _StateType]):
    """One type of state, whatever the process type."""

    def __init__(self, state_type: _StateType) -> None:
        super().__init__()
        self._state_type = state_type

    def __missing__(self, process_type: str) -> _StateType:
        return self._state_type


class StateCodec(Generic[StateT]):
    """Writes and reads states of the type, or the types by `process_type`, that a repository was given.

    Raises:
        TypeError: `state_type` is nothing that a state can be.
    """

    def __init__(self, state_type: object) -> None:
        self.depend_on_process_type = isinstance(state_type, Mapping)
        """Whether processes of different types have states of different types."""
        self._types: Mapping[str, _StateType]
        if isinstance(state_type, Mapping):
            self._types = {}
            for name, each in cast("Mapping[object, object]", state_type).items():
                if not isinstance(name, str):
                    raise TypeError(f"the keys of state_type must be process types (str), not {type(name).__name__}")
                self._types[name] = _StateType(each, f"state_type[{name!r}]")
        else:
            self._types = _SameForAll(_JsonState() if state_type is None else _StateType(state_type))

    @property
    def process_types(self) -> frozenset[str] | None:
        """The process types that have a type of state; `None` if all have the same."""
        return frozenset(self._types) if self.depend_on_process_type else None

    def write(self, process: ProcessMetadata[StateT]) -> str:
        """Turn the process's state into JSON text, which is sure to be readable again.

        Raises:
            InvalidInputError: The state is not of its type, JSON or `jsonb` cannot hold it, or it would come back as
                something else.
        """
        try:
            state_type = self._types[process.process_type]
        except KeyError as error:
            raise InvalidInputError(
                "process_type", f"no state type is declared for {process.process_type!r} in state_type"
            ) from error
        return state_type.write(process.state)

    def read(self, rows: Rows, unreadable: Callable[[StoredDataError], object]) -> list[ProcessMetadata[StateT]]:
        """Turn rows of `process` into processes.

        Args:
            rows: What was found.
            unreadable: Is given the error about each row that cannot be read. It may raise it; if it returns, the row
                is left out.
        """
        try:
            types = [self._types[name] for name in rows.columns["process_type"]]
            classes = [each.metadata_type for each in types]
            check_numbers(rows.columns["state"])
            readers = {each: each.read for each in set(types)}
            states = [readers[each](text) for each, text in zip(types, rows.columns["state"], strict=True)]
            return objects_of(rows, classes, {"state": states})
        except Exception:  # noqa: BLE001 - whatever it is, each row alone shows it
            return self._read_one_by_one(rows, unreadable)

    def _read_one_by_one(
        self, rows: Rows, unreadable: Callable[[StoredDataError], object]
    ) -> list[ProcessMetadata[StateT]]:
        processes: list[ProcessMetadata[StateT]] = []
        for row in rows.one_by_one():
            try:
                processes.append(self.read_row(row))
            except StoredDataError as error:
                unreadable(error)
        return processes

    def read_one(self, process_id: UUID, fields: str, state: str) -> ProcessMetadata[StateT]:
        """Turn what `GET_BY_ID` gives of a process into the process.

        Raises:
            StoredStateError, StoredDataError: As `read`.
        """
        try:
            row: Row = {"process_id": process_id, **fields_of(fields)}
            state_type = self._types[row["process_type"]]
            check_numbers((state,))
            row["state"] = state_type.read(state)
            stamp = row.pop("stamp")
            return object_of(row, state_type.metadata_type, stamp)
        except Exception:  # noqa: BLE001 - whatever it is, read_row shows it
            return self.read_row({"process_id": process_id, **unchecked_fields_of(fields), "state": state})

    def read_row(self, row: Row) -> ProcessMetadata[StateT]:
        """Turn one row, whose state is JSON text, into a process, and check each part of it.

        Raises:
            StoredStateError: The state does not fit its type, or nests too deep.
            StoredDataError: Another column has a value that this version does not know.
        """
        domain, process_id, process_type = row["domain"], row["process_id"], row["process_type"]
        try:
            state_type = self._types[process_type]
        except KeyError:
            why = "no state type is declared for this process type in state_type"
            raise StoredStateError(domain, process_id, process_type, "a declared type", why) from None
        try:
            state = state_type.read_checked(row["state"])
            check_finite(row["state"])
        except Exception as error:  # noqa: BLE001 - see above
            raise StoredStateError(
                domain, process_id, process_type, state_type.name, state_type.reason(error)
            ) from None
        try:
            # Without the state, which its own validators would see twice.
            fields = {name: value for name, value in plain_times(row).items() if name not in {"state", "stamp"}}
            checked = ProcessFields.model_validate(fields)
        except ValidationError as error:
            raise StoredDataError(domain, process_id, reason(error)) from None
        return object_of({**vars(checked), "state": state}, state_type.metadata_type, row["stamp"])
