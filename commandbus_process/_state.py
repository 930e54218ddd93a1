"""The state of a process between Python and JSON text: which type it has, how it is written, how it is read."""

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from typing import Any, Generic, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import override

from commandbus_process._json import JSON_OBJECT, json_object_text, json_text, may_have_nul, reason
from commandbus_process._rows import (
    DOES_NOT_FIT,
    Row,
    Rows,
    check_numbers,
    fields_of,
    json_object,
    object_of,
    objects_of,
    unchecked_fields_of,
)
from commandbus_process.errors import InvalidInputError, StoredDataError, StoredStateError
from commandbus_process.models import JsonObject, ProcessMetadata, StateT

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
        self._build()

    def _found_subclasses(self) -> tuple[type, ...]:
        # By name, the newest one: @dataclass(slots=True) leaves the class that it replaced among the subclasses until
        # that is collected.
        found = (subclass for root in self._roots for subclass in _subclasses(root))
        return tuple({(each.__module__, each.__qualname__): each for each in found}.values())

    def _find_new_subclasses(self) -> None:
        # Subclasses may be defined after the repository was made, so they are looked up each time: one call for a class
        # that has none. The adapters are built again only when there is a new one.
        found = self._found_subclasses() if self._roots else ()
        if found != self._subclasses:
            self._subclasses = found
            self._build()

    def _build(self) -> None:
        # An abstract class stands for its subclasses only.
        itself = () if inspect.isabstract(self._declared) else (self._declared,)
        union = _union_of(*itself, *self._subclasses)
        self._adapter: TypeAdapter[Any] = TypeAdapter(union)
        # A name that cannot be resolved is told now, not with the first process.
        self._adapter.rebuild(raise_errors=True)

    def reader(self) -> Callable[[str], object]:
        """Return what turns JSON text into states, for now: it does not know subclasses that are defined later."""
        self._find_new_subclasses()
        # Names as well as aliases, since the model's own configuration decides which of them it writes.
        return partial(self._adapter.validate_json, by_alias=True, by_name=True)

    def read_checked(self, text: str) -> object:
        """Turn JSON text into a state, or say what is wrong with it."""
        return self.reader()(text)

    def write(self, state: object) -> str:
        """Turn a state into JSON text that is sure to become the same state again."""
        own_class: Any = type(state)
        self._find_new_subclasses()
        adapter = _writer(own_class) if _is_class_with_fields(own_class) else self._adapter
        return self._text_that_reads_back(adapter, state) or self._checked_text(adapter, state)

    def _text_that_reads_back(self, adapter: TypeAdapter[Any], state: object) -> str | None:
        # The quick way for what is plainly good. Where it is not, the slow way looks, and says what is wrong.
        try:
            text = adapter.dump_json(state, round_trip=True, warnings="error").decode()
            read_back = self.reader()(text)
        except (PydanticSerializationError, ValueError, RecursionError):
            return None
        same = type(read_back) is type(state) and read_back == state
        return text if same and not may_have_nul(text) else None

    def _checked_text(self, adapter: TypeAdapter[Any], state: object) -> str:
        own_class: Any = type(state)
        try:
            plain = adapter.dump_python(state, mode="json", round_trip=True, warnings="error")
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            told = _REFUSED_VALUE.sub("", str(error))
            raise InvalidInputError("state", f"cannot be written as {self.name}: {told}") from error
        text = json_text(plain, "state")
        try:
            read_back = self.reader()(text)
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


class _JsonState(_StateType):
    """States that are JSON objects, where no type is declared."""

    def __init__(self) -> None:
        super().__init__(JsonObject)
        self.name = "a JSON object"
        self.metadata_type = ProcessMetadata

    @override
    def reader(self) -> Callable[[str], object]:
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
    """Writes and reads states of the type, or the types by `process_type`, that a repository was given."""

    def __init__(self, state_type: object) -> None:
        self.depend_on_process_type = isinstance(state_type, Mapping)
        """Whether processes of different types have states of different types."""
        self._types: Mapping[str, _StateType]
        if isinstance(state_type, Mapping):
            declared = cast("Mapping[str, object]", state_type)
            self._types = {name: _StateType(each) for name, each in declared.items()}
        else:
            self._types = _SameForAll(_JsonState() if state_type is None else _StateType(state_type))

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

    def read(self, rows: Rows) -> list[ProcessMetadata[StateT]]:
        """Turn rows of `process` into processes.

        Raises:
            StoredStateError: A state does not fit its type, or nests too deep; the error names the process.
            StoredDataError: Another column has a value that this version does not know.
        """
        try:
            types = [self._types[name] for name in rows.columns["process_type"]]
            classes = [each.metadata_type for each in types]
            check_numbers(rows.columns["state"])
            reader = {each: each.reader() for each in set(types)}
            states = [reader[each](text) for each, text in zip(types, rows.columns["state"], strict=True)]
            return objects_of(rows, classes, {"state": states})
        except DOES_NOT_FIT:
            return [self._read_checked(row) for row in rows.one_by_one()]

    def read_one(self, process_id: UUID, fields: str, state: str) -> ProcessMetadata[StateT]:
        """Turn what `GET_BY_ID` gives of a process into the process.

        Raises:
            StoredStateError, StoredDataError: As `read`.
        """
        try:
            row: Row = {"process_id": process_id, **fields_of(fields)}
            state_type = self._types[row["process_type"]]
            check_numbers((state,))
            row["state"] = state_type.reader()(state)
            return object_of(row, state_type.metadata_type)
        except DOES_NOT_FIT:
            return self._read_checked({"process_id": process_id, **unchecked_fields_of(fields), "state": state})

    def _read_checked(self, row: Row) -> ProcessMetadata[StateT]:
        domain, process_id, process_type = row["domain"], row["process_id"], row["process_type"]
        try:
            state_type = self._types[process_type]
        except KeyError as error:
            why = "no state type is declared for this process type in state_type"
            raise StoredStateError(domain, process_id, process_type, "a declared type", why) from error
        try:
            state = state_type.read_checked(row["state"])
        except ValidationError as error:
            raise StoredStateError(domain, process_id, process_type, state_type.name, reason(error)) from error
        try:
            return state_type.metadata_type.model_validate({**row, "state": state})
        except ValidationError as error:
            raise StoredDataError(domain, process_id, reason(error)) from error
