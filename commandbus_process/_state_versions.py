"""The versions of a type of state, and the functions that turn a stored state from one version into another."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, overload

from pydantic_core import to_json

from commandbus_process._json import JSON_OBJECT, checked_object
from commandbus_process.errors import InvalidInputError
from commandbus_process.models import JsonObject, StateT

Converter: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a state of one version as a JSON object, and returns it in the next version, or in the one before."""

FIRST = 1
"""The version of a state whose row has no version."""
NEWEST = 2**31 - 1
"""The newest version that the column can hold."""


class ConversionError(ValueError):
    """A stored state cannot be turned into the wanted version. The message quotes nothing of the state."""


class StateVersions(Generic[StateT]):
    """A type of state that has changed, and how to read and write its other versions. Pass it as `state_type`.

        StateVersions(OrderState, version=3, upcasters={1: split_name, 2: rename_total}, downcasters={3: undo_rename})

    Each row has the version of its state, in the column `state_version`. NULL counts as 1, so 1 is the version of every
    state that was written without `StateVersions`.

    - A state of an older version is read through the upcasters, one after the other. The row stays as it is until it is
      written.
    - A state of a newer version raises `StateTooNewError`, and is never overwritten. If downcasters lead down to
      `version`, it is read through them instead, and then `update` replaces it in the older version.
    - `write_version` is the version that is written. While a deployment rolls, set it to the version that the older
      programs know. What cannot come back through the upcasters as the same state is refused.

    A converter is a pure function. It takes a JSON object (a `dict`, which it may change) and returns one. It runs each
    time that such a state is read, or compared before it is written. It must not wait for anything. Numbers with a
    fraction are Python floats.

    Args:
        state_type: The type of the current version: a Pydantic model, dataclass, TypedDict or union of them.
        version: The current version, 1 or more.
        upcasters: For each older version that can be read, the function that turns it into the next version. The
            versions must have no gap. The first ones can go when no row has them any more.
        downcasters: For versions that are written or read in an older form, the function that turns each into the
            version before. The versions must have no gap.
        write_version: The version that is written. Default: `version`.

    Attributes:
        state_type: The type of the current version.
        version: The current version.
        write_version: The version that is written.
        oldest: The oldest version that can be read.
        newest: The newest version that can be read.

    Raises:
        InvalidInputError: A version is missing in a chain, or belongs to none.
        TypeError: A version is no integer, or a converter is no plain function.
    """

    @overload
    def __init__(
        self,
        state_type: type[StateT],
        *,
        version: int,
        upcasters: Mapping[int, Converter] | None = None,
        downcasters: Mapping[int, Converter] | None = None,
        write_version: int | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        state_type: object,
        *,
        version: int,
        upcasters: Mapping[int, Converter] | None = None,
        downcasters: Mapping[int, Converter] | None = None,
        write_version: int | None = None,
    ) -> None: ...
    def __init__(
        self,
        state_type: object,
        *,
        version: int,
        upcasters: Mapping[int, Converter] | None = None,
        downcasters: Mapping[int, Converter] | None = None,
        write_version: int | None = None,
    ) -> None:
        self.state_type = state_type
        self.version = _checked_version("version", version)
        self.write_version = version if write_version is None else _checked_version("write_version", write_version)
        self._upcasters = _checked_converters("upcasters", upcasters)
        self._downcasters = _checked_converters("downcasters", downcasters)
        self.oldest = self._check_upcasters()
        self.newest = self._check_downcasters()

    @property
    def upcasters(self) -> tuple[int, ...]:
        """The versions that have an upcaster, oldest first."""
        return tuple(sorted(self._upcasters))

    def _check_upcasters(self) -> int:
        """Return the oldest version that can be read."""
        unused = [each for each in self._upcasters if each >= self.version]
        if unused:
            raise InvalidInputError(
                f"upcasters[{min(unused)}]", f"leads beyond version {self.version}; leave it out, or raise the version"
            )
        oldest = min(self._upcasters, default=self.version)
        _check_no_gap("upcasters", self._upcasters, oldest, self.version - 1)
        return oldest

    def _check_downcasters(self) -> int:
        """Return the newest version that can be read."""
        given = self._downcasters
        if FIRST in given:
            raise InvalidInputError(f"downcasters[{FIRST}]", "leads to no version: 1 is the first")
        newest = max((self.version, *given))
        # A chain goes down to the version that is written, or from a newer version to this one.
        lowest = min((self.version + 1, self.write_version + 1, *given))
        if self.write_version > self.version:
            raise InvalidInputError("write_version", f"is newer than version {self.version}")
        _check_no_gap("downcasters", given, lowest, newest)
        if self.write_version < self.oldest:
            raise InvalidInputError(
                "write_version",
                f"is {self.write_version}, but no upcaster reads that version again; the oldest that is read is "
                f"{self.oldest}",
            )
        return newest

    def current(self, text: str, found: int) -> str:
        """Turn the JSON text of a stored state into the current version. For use by the library.

        Raises:
            ConversionError: No chain leads from there, or a converter has failed.
            pydantic.ValidationError: The text is no JSON object.
        """
        if found > self.newest or found < self.oldest:
            raise ConversionError(
                f"it is at version {found}, and this program reads the versions {self.oldest} to {self.newest}"
            )
        return self._converted(text, found, self.version)

    def to_write(self, text: str) -> str:
        """Turn JSON text of the current version into the version that is written. For use by the library.

        Raises:
            ConversionError: A converter has failed.
        """
        return self._converted(text, self.version, self.write_version)

    def _converted(self, text: str, start: int, end: int) -> str:
        if start == end:
            return text
        value = JSON_OBJECT.validate_json(text)
        if start < end:
            for number in range(start, end):
                value = _run(self._upcasters[number], f"the upcaster from version {number}", value)
        else:
            for number in range(start, end, -1):
                value = _run(self._downcasters[number], f"the downcaster from version {number}", value)
        try:
            return to_json(value).decode()
        except ValueError:  # a lone surrogate; its message quotes the text
            raise ConversionError(f"what became version {end} contains a lone surrogate") from None


class RawStates(StateVersions[JsonObject]):
    """States as they are stored: JSON objects of any version. For archives, exports and repairs.

        PostgresProcessRepository(engine, state_type=RawStates())

    `process.state_version` says which version a state has. `update` leaves it at that version, and overwrites no newer
    one. A process that was never read gets version 1.
    """

    def __init__(self) -> None:
        super().__init__(JsonObject, version=FIRST)


def _run(converter: Converter, name: str, value: JsonObject) -> JsonObject:
    try:
        made: object = converter(value)
    except Exception as error:  # noqa: BLE001 - the caller's function may raise anything, and its message may quote the state
        raise ConversionError(f"{name} raised {type(error).__name__}") from None
    try:
        return checked_object(made)
    except ValueError as error:
        raise ConversionError(f"{name} returned no JSON object: {error}") from None


def _checked_version(name: str, version: object) -> int:
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"{name} must be an integer, not {type(version).__name__}")
    if not FIRST <= version <= NEWEST:
        raise InvalidInputError(name, f"must be from {FIRST} to {NEWEST}")
    return version


def _checked_converters(name: str, given: Mapping[int, Converter] | None) -> dict[int, Converter]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(f"{name} must be a mapping from versions to functions, not {type(given).__name__}")
    for version, converter in given.items():
        _checked_version(f"a key of {name}", version)
        if not callable(converter):
            raise TypeError(f"{name}[{version}] must be a function, not {type(converter).__name__}")
        if any(is_other(converter) for is_other in _NO_PLAIN_FUNCTIONS):
            raise TypeError(f"{name}[{version}] must be a plain function that returns a JSON object")
    return dict(given)


_NO_PLAIN_FUNCTIONS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _check_no_gap(name: str, given: Mapping[int, Converter], first: int, last: int) -> None:
    missing = next((version for version in range(first, last + 1) if version not in given), None)
    if missing is not None:
        raise InvalidInputError(name, f"has no function from version {missing}")
