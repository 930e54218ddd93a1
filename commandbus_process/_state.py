"""The state of a process between Python and JSON text: which type it has, how it is written, how it is read."""

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
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
        self._seen: tuple[type, ...] | None = None
        self._adapter: TypeAdapter[Any] = TypeAdapter(Any)

    def _reader(self) -> TypeAdapter[Any]:
        # Subclasses may be defined after the repository was made, so they are looked up each time: one call for a class
        # that has none. The adapter is built again only when there is a new one.
        found = tuple(dict.fromkeys(subclass for root in self._roots for subclass in _subclasses(root)))
        if found != self._seen:
            self._adapter = TypeAdapter(_union_of(self._declared, *found))
            self._seen = found
        return self._adapter

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
            raise InvalidInputError("state", f"is no {self.name}: {told}") from error
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
        name = "a JSON object"
        try:
            state_type = self._state_type(process_type)
            if state_type is None:
                return cast("StateT", JSON_OBJECT.validate_json(text))
            name = state_type.name
            return cast("StateT", state_type.read(text))
        except KeyError as error:
            why = "no state type is declared for this process type in state_type"
            raise StoredStateError(domain, process_id, process_type, "anything", why) from error
        except ValidationError as error:
            raise StoredStateError(domain, process_id, process_type, name, reason(error)) from error

    def metadata_type(self, process_type: str) -> type[ProcessMetadata[StateT]]:
        """Return `ProcessMetadata` with the declared state type as its parameter."""
        state_type = self._state_type(process_type)
        plain: type[ProcessMetadata[Any]] = ProcessMetadata
        return plain if state_type is None else state_type.metadata_type
