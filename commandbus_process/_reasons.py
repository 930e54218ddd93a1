"""Explain why a value was rejected, without quoting any part of it: it may be secret.

Pydantic's messages quote values even with `hide_input_in_errors`: the tag of a union, the keys of a dictionary in the
path to an error, the text of a validator.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeAlias, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from commandbus_process.models import MESSAGES, ProcessAuditEntry, ProcessMetadata, StepReply

OWN_FIELDS = frozenset({*ProcessMetadata.model_fields, *ProcessAuditEntry.model_fields, *StepReply.model_fields})

# The placeholders in Pydantic's messages whose text comes from the type. The text of all others ("error", "tag",
# "actual_length") comes from the value.
_FROM_THE_TYPE = frozenset(
    {"attribute", "class", "class_name", "discriminator", "expected", "expected_plural", "expected_schemes"}
    | {"expected_version", "method_name", "pattern"}
    | {"decimal_places", "max_digits", "max_length", "min_length", "whole_digits"}
    | {"ge", "gt", "le", "lt", "multiple_of"}
)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")

Path: TypeAlias = tuple[int | str, ...]


def explain(error: Exception, declared: Collection[str] = OWN_FIELDS) -> str:
    """Return what was rejected, and where.

    Args:
        error: The error. If it is not a Pydantic error, only its class is named.
        declared: The names that the type declares. Other names in the path are keys of dictionaries or extra fields.
            These are data, and are shown as `*`.
    """
    if not isinstance(error, ValidationError):
        return f"raised {type(error).__name__}"
    return _joined(error, lambda path: (part if isinstance(part, int) or part in declared else "*" for part in path))


def explain_json(error: ValidationError) -> str:
    """Return what was rejected in a JSON value, and where. All keys are data, and are shown as `*`."""
    # In the path, Pydantic names the alternative that it tried before each key or position.
    return _joined(
        error, lambda path: (part if kind == "list" else "*" for kind, part in zip(path[::2], path[1::2], strict=False))
    )


def _joined(error: ValidationError, shown: Callable[[Path], Iterable[object]], most: int = 3) -> str:
    found = error.errors(include_url=False, include_input=False)
    shown_errors = [
        f"{'.'.join(map(str, shown(item['loc'])))}: {_message(item)}".removeprefix(": ") for item in found[:most]
    ]
    more = len(found) - len(shown_errors)
    return "; ".join(shown_errors) + (f" (and {more} more)" if more > 0 else "")


def _message(item: ErrorDetails) -> str:
    kind: Any = item["type"]
    if kind in MESSAGES:
        return MESSAGES[kind]
    if kind == "json_invalid" and "recursion limit" in item["msg"]:
        return "is nested too deeply to be read"
    try:
        # Made from Pydantic's own template: a model's validator may raise an error of the same type with its own text.
        known = PydanticKnownError(kind, item.get("ctx"))
        if _FROM_THE_TYPE.issuperset(_PLACEHOLDER.findall(known.message_template)):
            return known.message()
    except (KeyError, TypeError, ValueError):
        pass
    return str(kind)


def declared_names(schema: object) -> Iterator[str]:
    """Yield all names in a Pydantic schema: fields and their aliases, classes, and tags of unions."""
    if isinstance(schema, (list, tuple)):
        for each in cast("list[object]", schema):
            yield from declared_names(each)
    if not isinstance(schema, dict):
        return
    for key, value in cast("dict[str, Any]", schema).items():
        if key in {"fields", "choices"} and isinstance(value, dict):
            yield from map(str, cast("dict[object, object]", value))
        elif key == "cls":
            yield value.__name__
        elif key in {"name", "cls_name"} and isinstance(value, str):
            yield value
        elif key in {"alias", "validation_alias", "serialization_alias"}:
            yield from _texts(value)
        yield from declared_names(cast("object", value))


def _texts(alias: object) -> Iterator[str]:
    if isinstance(alias, str):
        yield alias
    elif isinstance(alias, list):
        for each in cast("list[object]", alias):
            yield from _texts(each)
