"""Find where a state that was read back differs from the state that was written.

`==` does not suffice. A model's `__eq__` may compare only ids. A time in the hour that the clock repeats equals no time
in another zone. A time of day equals itself without its zone. So objects are compared part by part, and `==` decides
only about values without parts.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, cast
from uuid import UUID

from pydantic import BaseModel

from commandbus_process._json import NUMBER_CHANGES


class Difference(NamedTuple):
    """Where two values differ, and how.

    The path may contain keys of dictionaries and names of extra fields. These are data.
    """

    path: tuple[object, ...]
    what: str


_REMEDY = "give it a type that says what it is, or leave it out of the state"
_ANOTHER = Difference((), f"would come back as another value; {_REMEDY}")

# If two values of one of these types are equal, they do not differ. (`time` is not among them: a time without a zone
# can equal a time with one. A datetime cannot.)
_PLAIN = frozenset({str, int, bool, type(None), float, bytes, UUID, Decimal, date, datetime, timedelta})
_ABSENT = object()


def difference(written: object, read: Any) -> Difference | None:  # noqa: ANN401, PLR0911 - each kind of value has its rule
    """Return the first difference between two values, or `None`."""
    of_type, read_type = type(written), read.__class__
    if of_type is not read_type:
        return _between_types(of_type, read_type)
    if of_type in _PLAIN and written == read:
        return None
    if isinstance(written, BaseModel):
        return _between_models(written, read)
    if isinstance(written, dict):
        return _between_dicts(cast("Mapping[Any, Any]", written), read)
    if isinstance(written, (list, tuple, deque)):
        return _between_sequences(cast("Sequence[Any]", written), read)
    if isinstance(written, (set, frozenset)):
        return _between_sets(cast("AbstractSet[Any]", written), read)
    if isinstance(written, (datetime, time, Enum)):
        return None if _same_leaf(written, read) else _ANOTHER
    if is_dataclass(written):
        names = [each.name for each in fields(written)]
        return _first((name, getattr(written, name), getattr(read, name)) for name in names)
    return None if _same_leaf(written, read) else _ANOTHER


def _between_types(written: type, read: type) -> Difference:
    if (written, read) == (float, int):
        return Difference((), NUMBER_CHANGES)
    return Difference((), f"would come back as another value ({written.__name__} as {read.__name__}); {_REMEDY}")


def _first(parts: Iterable[tuple[object, Any, Any]]) -> Difference | None:
    for name, written, read in parts:
        found = difference(written, read)
        if found is not None:
            return Difference((name, *found.path), found.what)
    return None


def _between_sequences(written: Sequence[Any], read: Sequence[Any]) -> Difference | None:
    if len(written) != len(read):
        return _ANOTHER
    # Long lists mostly have plain values. Comparing them all at once takes a tenth of the time.
    types = list(map(type, written))
    if _PLAIN.issuperset(types) and types == list(map(type, read)) and written == read:
        return None
    return _first(zip(range(len(written)), written, read, strict=True))


def _between_dicts(written: Mapping[Any, Any], read: Mapping[Any, Any]) -> Difference | None:
    if isinstance(written, OrderedDict):
        return Difference((), "is an OrderedDict, and jsonb does not keep the order of keys; use a list of pairs")
    if written.keys() != read.keys():
        return _ANOTHER
    if set(map(type, written)) <= {str}:
        return _first((key, value, read[key]) for key, value in written.items())
    # Equal keys may differ: 1 equals True.
    keys = {key: key for key in read}
    return _first(("*", key, keys[key]) for key in written) or _first(
        ("*", value, read[key]) for key, value in written.items()
    )


def _between_sets(written: AbstractSet[Any], read: AbstractSet[Any]) -> Difference | None:
    # Equal elements may differ, too. And the same time may be unequal in two zones, so times are compared in UTC.
    elements = {_instant(each): each for each in read}
    if len(written) != len(read) or {_instant(each) for each in written} != elements.keys():
        return _ANOTHER
    return _first(("*", each, elements[_instant(each)]) for each in written)


def _between_models(written: BaseModel, read: BaseModel) -> Difference | None:
    values, read_values = vars(written), vars(read)
    for name, field in type(written).__pydantic_fields__.items():
        # Excluded fields and private attributes are not stored, so they are not compared.
        if field.exclude:
            continue
        value, read_value = values[name], read_values[name]
        # Most fields are plain and equal. Comparing them here saves a call.
        if type(value) in _PLAIN and type(value) is type(read_value) and value == read_value:
            continue
        found = difference(value, read_value)
        if found is not None:
            return Difference((name, *found.path), found.what)
    extra, read_extra = written.__pydantic_extra__, read.__pydantic_extra__
    if not extra and not read_extra:
        return None
    extra, read_extra = extra or {}, read_extra or {}
    return _first((name, extra.get(name, _ABSENT), read_extra.get(name, _ABSENT)) for name in extra | read_extra)


def _same_leaf(written: Any, read: Any) -> bool:  # noqa: ANN401 - any value
    if isinstance(written, (datetime, time)) and (written.tzinfo is None) is not (read.tzinfo is None):
        return False
    if written == read or _instant(written) == _instant(read):
        return True
    equality: object = type(written).__eq__
    if equality is object.__eq__ and not isinstance(written, Enum):
        return True  # An object without `__eq__` equals only itself. The caller compares the written text as well.
    return bool(written != written and read != read)  # noqa: PLR0124 - NaN


def _instant(value: Any) -> Any:  # noqa: ANN401 - any value
    return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo is not None else value
