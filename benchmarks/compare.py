"""Whether a side did what all sides are to do."""

from dataclasses import fields, is_dataclass
from typing import cast

from pydantic import BaseModel

_OWN_FIELDS = {
    "business_key",
    "deadline",
    "state_version",
    "version",
    "batch_id",
    "compensates",
}  # what one side has and the others have not


class DifferenceError(Exception):
    """A side did something else. The message says which, where, and what differs."""


def check(where: str, expected: object, found: object) -> None:
    """Compare plain values with what a side gave: models, dataclasses or rows, field by field.

    Raises:
        DifferenceError: They are not the same.
    """
    difference = _difference(_parts(expected), _parts(found), "")
    if difference is not None:
        raise DifferenceError(f"{where}: {difference}")


def _difference(expected: object, found: object, path: str) -> str | None:
    if expected == found:
        return None
    if not (isinstance(expected, dict) and isinstance(found, dict)):
        return f"{path.lstrip('.') or 'the answer'} is {found!r:.200}, not {expected!r:.200}"
    theirs, ours = cast("dict[str, object]", found), cast("dict[str, object]", expected)
    differences = (
        _difference(ours.get(part, "missing"), theirs.get(part, "missing"), path + part) for part in {**ours, **theirs}
    )
    return next(filter(None, differences), None)


def _parts(value: object) -> object:
    """Return what a value consists of, by place or name; a value of one piece as it is.

    Processes are ordered by their id, because the reference lists them in no order.
    """
    if isinstance(value, list):
        parts = [_parts(part) for part in cast("list[object]", value)]
        if all(isinstance(part, dict) and ".created_at" in part for part in parts):
            parts.sort(key=lambda part: str(cast("dict[str, object]", part)[".process_id"]))
        return {f"[{position}]": part for position, part in enumerate(parts)}
    if isinstance(value, BaseModel):
        named = {name: getattr(value, name) for name in type(value).model_fields}
    elif is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, dict):
        named = cast("dict[str, object]", value)
    else:
        return value
    return {f".{name}": _parts(part) for name, part in named.items() if name not in _OWN_FIELDS}
