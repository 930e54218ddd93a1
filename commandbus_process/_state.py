"""The state of a process between Python and JSON text: which type it has, how it is written, how it is read."""

import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Generic, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from commandbus_process._json import JSON_OBJECT, json_object_text, json_text, reason
from commandbus_process.errors import InvalidInputError, StoredStateError
from commandbus_process.models import ProcessMetadata, StateT

# Pydantic quotes the value that it refused; it may be secret.
_REFUSED_VALUE = re.compile(r"input_value=.*?, (?=input_type=)", re.DOTALL)


def _is_class_with_fields(candidate: object) -> bool:
    return inspect.isclass(candidate) and (issubclass(candidate, BaseModel) or is_dataclass(candidate))


def _subclasses(state_class: type) -> Iterator[type]:
    subclass: type
    for subclass in state_class.__subclasses__():
        if _is_class_with_fields(subclass) and not inspect.isabstract(subclass):
            yield subclass
        yield from _subclasses(subclass)


def _union_of(*members: object) -> Any:  # noqa: ANN401 - type checkers have no name for a type built at run time
    union: Any = Union
    return union[members]


def _parts(value: object) -> Mapping[Any, Any] | None:
    """Return what is stored of a value, part by part; `None` if it is one piece.

    Fields that a model excludes, and its private attributes, are its own business.
    """
    if isinstance(value, dict):
        return cast("Mapping[Any, Any]", value)
    if isinstance(value, list):
        return dict(enumerate(cast("Sequence[Any]", value)))
    if isinstance(value, BaseModel):
        stored = [name for name, field in type(value).model_fields.items() if not field.exclude]
        return {name: getattr(value, name) for name in stored} | (value.model_extra or {})
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def _difference(written: object, read: object, path: str) -> str | None:
    """Say where a state that was read back differs from the one that was written; `None` if nowhere."""
    if written == read:
        return None
    parts, read_parts = _parts(written), _parts(read)
    if parts is None or read_parts is None or type(written) is not type(read) or parts.keys() != read_parts.keys():
        return path
    found = (_difference(part, read_parts[name], f"{path}.{name}") for name, part in parts.items())
    return next((where for where in found if where is not None), None)


@lru_cache(maxsize=256)
def _writer(state_class: type) -> TypeAdapter[Any]:
    # A state is written as what it is, not as what the field was declared to be: a subclass keeps its fields.
    return TypeAdapter(state_class)


class _StateType:
    """One declared type of state.

    A class is read as itself or as one of its subclasses, whichever has most of the stored fields: Pydantic's "smart"
    choice in a union, where the declared class stands first and so wins a tie.
    """

    def __init__(self, declared: object) -> None:
        self.name = declared.__name__ if inspect.isclass(declared) else str(declared)
        generic: Any = ProcessMetadata
        self.metadata_type: type[ProcessMetadata[Any]] = generic[declared]
        members = get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)
        self._roots = [cast("type", member) for member in members if _is_class_with_fields(member)]
        self._declared = declared
        self._subclasses = self._found_subclasses()
        self._adapter = self._built()

    def _found_subclasses(self) -> tuple[type, ...]:
        # By name, the newest one: @dataclass(slots=True) leaves the class that it replaced among the subclasses until
        # that is collected.
        found = (subclass for root in self._roots for subclass in _subclasses(root))
        return tuple({(each.__module__, each.__qualname__): each for each in found}.values())

    def _reader(self) -> TypeAdapter[Any]:
        # Subclasses may be defined after the repository was made, so they are looked up each time: one call for a class
        # that has none. The adapter is built again only when there is a new one.
        found = self._found_subclasses()
        if found != self._subclasses:
            self._subclasses = found
            self._adapter = self._built()
        return self._adapter

    def _built(self) -> TypeAdapter[Any]:
        # An abstract class stands for its subclasses only.
        itself = () if inspect.isabstract(self._declared) else (self._declared,)
        adapter: TypeAdapter[Any] = TypeAdapter(_union_of(*itself, *self._subclasses))
        adapter.rebuild(raise_errors=True)  # a name that cannot be resolved is told now, not with the first process
        return adapter

    def read(self, text: str) -> object:
        # Names as well as aliases, since the model's own configuration decides which of them it writes.
        return self._reader().validate_json(text, by_alias=True, by_name=True)

    def write(self, state: object) -> str:
        own_class: Any = type(state)
        adapter = _writer(own_class) if _is_class_with_fields(own_class) else self._reader()
        try:
            plain = adapter.dump_python(state, mode="json", round_trip=True, warnings="error")
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            told = _REFUSED_VALUE.sub("", str(error))
            raise InvalidInputError("state", f"cannot be written as {self.name}: {told}") from error
        text = json_text(plain, "state")
        try:
            read_back = self.read(text)
        except ValidationError as error:
            raise InvalidInputError("state", f"could not be read back as {self.name}: {reason(error)}") from error
        if _is_class_with_fields(own_class) and type(read_back) is not own_class:
            raise InvalidInputError(
                "state",
                f"is {own_class.__name__} but would come back as {type(read_back).__name__}; "
                f"give the repository state_type={own_class.__name__}, or a union that it can be told apart in",
            )
        lost = _difference(state, read_back, "state")
        if lost is not None:
            raise InvalidInputError(
                lost,
                "would come back as another value; give it a type that says what it is, or leave it out of the state",
            )
        return text


class StateCodec(Generic[StateT]):
    """Writes and reads states of the type, or the types by `process_type`, that a repository was given."""

    def __init__(self, state_type: object) -> None:
        self._by_process_type: dict[str, _StateType] | None = None
        self._for_all: _StateType | None = None
        if isinstance(state_type, Mapping):
            declared = cast("Mapping[str, object]", state_type)
            self._by_process_type = {name: _StateType(each) for name, each in declared.items()}
        elif state_type is not None:
            self._for_all = _StateType(state_type)

    @property
    def depend_on_process_type(self) -> bool:
        """Whether processes of different types have states of different types."""
        return self._by_process_type is not None

    def _state_type(self, process_type: str) -> _StateType | None:
        """Return the declared type, `None` for plain JSON objects; raise `KeyError` if a mapping lacks it."""
        return self._for_all if self._by_process_type is None else self._by_process_type[process_type]

    def write(self, process: ProcessMetadata[StateT]) -> str:
        """Turn the process's state into JSON text, which is sure to be readable again.

        Raises:
            InvalidInputError: The state is not of its type, JSON or `jsonb` cannot hold it, or it would come back as
                something else.
        """
        try:
            state_type = self._state_type(process.process_type)
        except KeyError as error:
            raise InvalidInputError(
                "process_type", f"no state type is declared for {process.process_type!r} in state_type"
            ) from error
        if state_type is not None:
            return state_type.write(process.state)
        return json_object_text(process.state, "state")

    def read(self, domain: str, process_id: UUID, process_type: str, text: str) -> StateT:
        """Turn stored JSON text into a state.

        Raises:
            StoredStateError: It does not fit its type, or nests too deep.
        """
        try:
            state_type = self._state_type(process_type)
        except KeyError as error:
            why = "no state type is declared for this process type in state_type"
            raise StoredStateError(domain, process_id, process_type, "a declared type", why) from error
        try:
            return cast("StateT", JSON_OBJECT.validate_json(text) if state_type is None else state_type.read(text))
        except ValidationError as error:
            name = "a JSON object" if state_type is None else state_type.name
            raise StoredStateError(domain, process_id, process_type, name, reason(error)) from error

    def metadata_type(self, process_type: str) -> type[ProcessMetadata[StateT]]:
        """Return `ProcessMetadata` with the declared state type as its parameter."""
        state_type = self._state_type(process_type)
        plain: type[ProcessMetadata[Any]] = ProcessMetadata
        return plain if state_type is None else state_type.metadata_type
