"""Turn states into JSON text and back, by the types that a repository declares."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from typing import Any, Generic, cast

from pydantic import BaseModel, TypeAdapter
from typing_extensions import override

from commandbus_process._json import JSON_OBJECT, as_stored, check_finite, check_text, json_object, json_object_text
from commandbus_process._reasons import declared_names, explain
from commandbus_process._state_difference import Difference, difference
from commandbus_process._state_types import Declared, writer
from commandbus_process._state_versions import FIRST, NEWEST, ConversionError, RawStates, StateVersions
from commandbus_process.errors import InvalidInputError
from commandbus_process.models import JsonObject, ProcessMetadata, StateT
from commandbus_process.tables import STATE_VERSION

# A model's validators and serialisers may raise anything. Their messages, and Pydantic's, may quote a state. So the
# errors here are raised `from None`: the original stays in `__context__`, but tracebacks do not print it.


class StateType:
    """One declared type of state.

    Args:
        declared: The type.
        what: The name of the type in an error.

    Raises:
        TypeError: A state cannot have this type.
    """

    def __init__(self, declared: object, what: str = "state_type") -> None:
        self._declared = Declared(declared, what)
        self.name = self._declared.name
        generic: Any = ProcessMetadata
        self.metadata_type: type[ProcessMetadata[Any]] = generic[declared]
        adapters = self._declared.adapters()
        self._adapter = adapters[0]
        # `round_trip` leaves out computed fields, which a model may reject as input. Pydantic warns if a value does not
        # have its field's type. Here that is an error.
        self._dump = partial(writer(self._adapter), round_trip=True, warnings="error")
        # Read by name and by alias: the model's own configuration decides which of them it writes.
        self._readers = [partial(each.validate_json, by_alias=True, by_name=True) for each in adapters]
        self.newest = FIRST

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(declared_names(self._adapter.core_schema))

    @property
    def read(self) -> Callable[[str], object]:
        """The function that turns JSON text into a state."""
        return self._readers[0]

    def current(self, text: str, version: int | None) -> str:
        """Return the JSON text of a stored state in the version of this type. It may raise anything, as `read` may.

        Args:
            text: The text that is stored.
            version: Its version; `None` counts as 1.
        """
        if version is None or version == FIRST:
            return text
        raise ConversionError(f"it is at version {version}, and this program reads version {FIRST} only")

    def stored_version(self, process: ProcessMetadata[Any]) -> int | None:  # noqa: ARG002 - raw states need it
        """Return the version in which the state of a process is written; `None` is 1."""
        return None

    def newest_replaced(self, process: ProcessMetadata[Any]) -> int:  # noqa: ARG002 - raw states need it
        """Return the newest version of a stored state that this process may overwrite."""
        return self.newest

    def read_checked(self, text: str) -> object:
        """Turn stored JSON text into a state, and check all of it. It may raise anything; pass that to `explain`."""
        state = self._read_fully(text)
        check_finite(text)
        return state

    def _read_fully(self, text: str) -> object:
        return self.read(text)

    def explain(self, error: Exception) -> str:
        """Return why a state could not be read. The text quotes nothing of the state."""
        return str(error) if isinstance(error, ConversionError) else explain(error, self._names)

    def write(self, state: object) -> str:
        """Turn a state into JSON text that will be read as the same state again."""
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
        self._check_comes_back(state, encoded, stored)
        return text

    def _check_comes_back(self, state: object, encoded: bytes, stored: str) -> None:
        """Check that a state is read back from stored text as it is, and would be written in the same way."""
        for read in self._readers:
            try:
                found = read(stored)
                different = difference(state, found)
                same = different is None and self._dump(found) == encoded
            except Exception as error:  # noqa: BLE001 - see above
                why = f"could not be read back as {self.name}: {self.explain(error)}"
                raise InvalidInputError("state", why) from None
            if not same:
                raise self._not_the_same(state, found, different)

    def _why_not_written(self, state: object, error: Exception) -> str:
        if "surrogates not allowed" in str(error):
            return "contains a lone surrogate, which UTF-8 cannot encode"
        # Pydantic's message names the field, but quotes its value, too. So each field is tried alone.
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
            return InvalidInputError("state", "would be written differently after it was read back")
        path = (str(each) if isinstance(each, int) or each in self._names else "*" for each in different.path)
        return InvalidInputError(".".join(("state", *path)), different.what)


def _field_names(state: object) -> list[str]:
    if isinstance(state, BaseModel):
        return list(type(state).model_fields)
    return [each.name for each in fields(state)] if is_dataclass(state) and not isinstance(state, type) else []


class _JsonState(StateType):
    """The type of states if none is declared: JSON objects."""

    def __init__(self) -> None:
        super().__init__(JsonObject)
        self.name = "a JSON object"
        self.metadata_type = ProcessMetadata

    @property
    @override
    def read(self) -> Callable[[str], object]:
        return json_object

    @override
    def _read_fully(self, text: str) -> object:
        return JSON_OBJECT.validate_json(text)

    @override
    def write(self, state: object) -> str:
        return json_object_text(state, "state")


class _RawState(_JsonState):
    """The type of states that are read and written as they are stored, whatever their versions."""

    def __init__(self) -> None:
        super().__init__()
        self.newest = NEWEST

    @override
    def current(self, text: str, version: int | None) -> str:
        return text

    @override
    def stored_version(self, process: ProcessMetadata[Any]) -> int | None:
        return _or_null(process.state_version or FIRST)

    @override
    def newest_replaced(self, process: ProcessMetadata[Any]) -> int:
        return process.state_version or FIRST


class _VersionedState(StateType):
    """A type of state with other versions, from which and to which it is converted."""

    def __init__(self, versions: StateVersions[Any], what: str) -> None:
        super().__init__(versions.state_type, what)
        self._versions = versions
        self.newest = versions.newest

    @override
    def current(self, text: str, version: int | None) -> str:
        return self._versions.current(text, FIRST if version is None else version)

    @override
    def stored_version(self, process: ProcessMetadata[Any]) -> int | None:
        return _or_null(self._versions.write_version)

    @override
    def write(self, state: object) -> str:
        text = super().write(state)
        written = self._versions.write_version
        if written == self._versions.version:
            return text
        try:
            older = check_text(self._versions.to_write(text).encode(), "state")
            stored = self._versions.current(as_stored(older), written)
        except ConversionError as error:
            raise InvalidInputError("state", f"cannot be written as version {written}: {error}") from None
        try:
            # What the older version cannot hold would be lost without a trace.
            self._check_comes_back(state, text.encode(), stored)
        except InvalidInputError as error:
            why = f"cannot be written as version {written}, because it {error.reason}"
            raise InvalidInputError(error.field, why) from None
        return older


def _or_null(version: int) -> int | None:
    return None if version == FIRST else version


def _state_type(declared: object, what: str = "state_type") -> StateType:
    if isinstance(declared, RawStates):
        return _RawState()
    versions: Any = declared
    if isinstance(declared, StateVersions):
        return _VersionedState(versions, what)
    return StateType(declared, what)


class _SameForAll(dict[str, StateType]):
    """The same type of state for every process type."""

    def __init__(self, state_type: StateType) -> None:
        super().__init__()
        self._state_type = state_type

    def __missing__(self, process_type: str) -> StateType:
        return self._state_type


class States(Generic[StateT]):
    """Writes states, and finds the type that reads them, for a repository's `state_type`.

    Attributes:
        has_versions: Whether a type has `StateVersions`, so that a state without a version may have to be converted.

    Raises:
        TypeError: `state_type` is not a type that a state can have.
    """

    def __init__(self, state_type: object) -> None:
        self._is_mapping = isinstance(state_type, Mapping)
        self._types: Mapping[str, StateType]
        if isinstance(state_type, Mapping):
            self._types = {}
            for name, each in cast("Mapping[object, object]", state_type).items():
                if not isinstance(name, str):
                    raise TypeError(f"the keys of state_type must be process types (str), not {type(name).__name__}")
                self._types[name] = _state_type(each, f"state_type[{name!r}]")
            self.has_versions = any(isinstance(each, _VersionedState) for each in self._types.values())
        else:
            same = _JsonState() if state_type is None else _state_type(state_type)
            self._types = _SameForAll(same)
            self.has_versions = isinstance(same, _VersionedState)

    def find_type(self, process_type: str) -> StateType:
        """Return the type of state that is declared for a process type.

        Raises:
            KeyError: None is declared.
        """
        return self._types[process_type]

    @property
    def process_types(self) -> frozenset[str] | None:
        """The process types for which a type of state is declared; `None` if all process types have the same."""
        return frozenset(self._types) if self._is_mapping else None

    def write(self, process: ProcessMetadata[StateT]) -> str:
        """Turn the process's state into JSON text that will be read as the same state again.

        Raises:
            InvalidInputError: As `columns`.
        """
        return self._declared(process).write(process.state)

    def newest_replaced(self, process: ProcessMetadata[StateT]) -> int:
        """Return the newest version of a stored state that this process may overwrite.

        Raises:
            InvalidInputError: No type is declared for the process's type.
        """
        return self._declared(process).newest_replaced(process)

    def columns(self, process: ProcessMetadata[StateT]) -> dict[str, Any]:
        """Return the columns of the process's state: JSON text that will be read as the same state, and its version.

        Raises:
            InvalidInputError: The state does not have its type, or JSON or `jsonb` cannot store it, or it would come
                back as something else.
        """
        state_type = self._declared(process)
        return {"state": state_type.write(process.state), STATE_VERSION: state_type.stored_version(process)}

    def _declared(self, process: ProcessMetadata[StateT]) -> StateType:
        try:
            return self._types[process.process_type]
        except KeyError as error:
            raise InvalidInputError(
                "process_type", f"no state type is declared for {process.process_type!r} in state_type"
            ) from error
