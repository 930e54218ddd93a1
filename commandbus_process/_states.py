"""The state of a process between Python and JSON text: which type it has, how it is written, how it is read."""

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
from commandbus_process.errors import InvalidInputError
from commandbus_process.models import JsonObject, ProcessMetadata, StateT

# A model's validators and serialisers may raise anything. What they say, and Pydantic's messages, may quote a state. So
# the errors here are raised `from None`: the original stays in `__context__`, which tracebacks do not print then.


class StateType:
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
        """Turn stored JSON text into a state, and check all of it. Whatever this raises, `explain` can explain."""
        state = self._read_fully(text)
        check_finite(text)
        return state

    def _read_fully(self, text: str) -> object:
        return self.read(text)

    def explain(self, error: Exception) -> str:
        """Return why a state could not be read, without anything of it."""
        return explain(error, self._names)

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
                why = f"could not be read back as {self.name}: {self.explain(error)}"
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


class _JsonState(StateType):
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
    def _read_fully(self, text: str) -> object:
        return JSON_OBJECT.validate_json(text)

    @override
    def write(self, state: object) -> str:
        return json_object_text(state, "state")


class _SameForAll(dict[str, StateType]):
    """One type of state, whatever the process type."""

    def __init__(self, state_type: StateType) -> None:
        super().__init__()
        self._state_type = state_type

    def __missing__(self, process_type: str) -> StateType:
        return self._state_type


class States(Generic[StateT]):
    """Writes and reads states of the type, or the types by `process_type`, that a repository was given.

    Raises:
        TypeError: `state_type` is nothing that a state can be.
    """

    def __init__(self, state_type: object) -> None:
        self._is_mapping = isinstance(state_type, Mapping)
        self._types: Mapping[str, StateType]
        if isinstance(state_type, Mapping):
            self._types = {}
            for name, each in cast("Mapping[object, object]", state_type).items():
                if not isinstance(name, str):
                    raise TypeError(f"the keys of state_type must be process types (str), not {type(name).__name__}")
                self._types[name] = StateType(each, f"state_type[{name!r}]")
        else:
            self._types = _SameForAll(_JsonState() if state_type is None else StateType(state_type))

    def find_type(self, process_type: str) -> StateType:
        """Return the type that the states of processes of a type have.

        Raises:
            KeyError: None is declared for them.
        """
        return self._types[process_type]

    @property
    def process_types(self) -> frozenset[str] | None:
        """The process types that have a type of state; `None` if all have the same."""
        return frozenset(self._types) if self._is_mapping else None

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
