"""What PostgreSQL's `jsonb` does to JSON text: which order keys get, and which values are equal."""

import json
from typing import cast

from pydantic import JsonValue
from pydantic_core import from_json

from commandbus_process._json import as_stored


def as_jsonb(text: str) -> str:
    """Return JSON text as `jsonb` gives it back: keys sorted by their length in bytes, numbers without an exponent."""
    return json.dumps(_sorted(_read(text)), ensure_ascii=False)


def equal_as_jsonb(one: str | None, other: str | None) -> bool:
    """Whether two JSON texts are the same value in `jsonb`. Numbers are compared by value, so 1 equals 1.0."""
    if one is None or other is None:
        return one is other
    return one == other or _equal(_read(one), _read(other))


def _read(text: str) -> JsonValue:
    return cast("JsonValue", from_json(as_stored(text)))


def _sorted(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=_key)}
    if isinstance(value, list):
        return [_sorted(each) for each in value]
    # `jsonb` has no negative zero.
    return value + 0.0 if isinstance(value, float) else value


def _key(name: str) -> tuple[int, bytes]:
    encoded = name.encode()
    return len(encoded), encoded


def _equal(one: JsonValue, other: JsonValue) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(each, other[key]) for key, each in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    # To Python, True equals 1.
    return isinstance(one, bool) is isinstance(other, bool) and one == other
