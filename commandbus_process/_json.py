"""JSON text as PostgreSQL's `jsonb` takes it: everything that it would refuse, or silently change, is refused here."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from commandbus_process.errors import InvalidInputError
from commandbus_process.models import JsonObject

_STRICT = ConfigDict(allow_inf_nan=False, hide_input_in_errors=True)
JSON_OBJECT: TypeAdapter[JsonObject] = TypeAdapter(JsonObject, config=_STRICT)
_JSON_VALUE: TypeAdapter[JsonValue] = TypeAdapter(JsonValue, config=_STRICT)

# In JSON text a NUL is written \u0000, with an even number of backslashes before it.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

# In the path to an error in a JSON value, Pydantic names the alternative that it tried ("dict", "list", "float") before
# each key or position.
_WITHOUT_ALTERNATIVES = slice(1, None, 2)


def reason(error: ValidationError, *, path: slice = slice(None), most: int = 3) -> str:
    """Say what Pydantic refused and where, without the refused values: they may be secret."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{'.'.join(str(part) for part in item['loc'][path])}: {item['msg']}".removeprefix(": ")
        for item in found[:most]
    ]
    more = len(found) - len(told)
    return "; ".join(told) + (f" (and {more} more)" if more > 0 else "")


def json_text(value: object, field: str) -> str:
    """Turn plain Python values into JSON text for `jsonb`.

    Args:
        value: Objects of the types that JSON has, and no others: not a tuple, a datetime, a key that is no string.
        field: What to call the value in an error.

    Raises:
        InvalidInputError: JSON or `jsonb` cannot hold the value: also NaN, infinity, a NUL character, a lone surrogate,
            a cycle, or a number of more than 4,300 digits.
    """
    try:
        text = json.dumps(
            _JSON_VALUE.validate_python(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")
        )
        # Pydantic's own writer replaces a lone surrogate in a key by U+FFFD without a word; encoding finds it.
        text.encode()
    except ValidationError as error:
        raise InvalidInputError(field, reason(error, path=_WITHOUT_ALTERNATIVES)) from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(field, "contains a lone surrogate, which UTF-8 cannot encode") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(field, f"cannot be written as JSON: {error}") from error
    if may_have_nul(text) and _NUL.search(text):
        raise InvalidInputError(field, "contains a NUL character, which PostgreSQL cannot store")
    return text


def json_object_text(value: object, field: str) -> str:
    """Turn a JSON object into text that is sure to be readable again.

    Raises:
        InvalidInputError: As `json_text`; also a value that is no object, or that nests too deep to be read again.
    """
    quick = _text_that_reads_back(value)
    if quick is not None and quick.startswith("{"):
        return quick
    text = json_text(value, field)
    try:
        JSON_OBJECT.validate_json(text)
    except ValidationError as error:
        raise InvalidInputError(field, reason(error)) from error
    return text


def _text_that_reads_back(value: object) -> str | None:
    """Return JSON text of what is plainly good; `None` where the slow way has to look, and to say what is wrong.

    Pydantic's writer is quick, but takes more than JSON. So what is read from its text must be the value again.
    """
    try:
        text = to_json(value, inf_nan_mode="constants").decode()
        same = from_json(text, allow_inf_nan=False) == value
    except (ValueError, RecursionError):
        return None
    return text if same and not may_have_nul(text) else None


def may_have_nul(text: str) -> bool:
    """Whether a NUL, or a backslash that looks like one, is in JSON text."""
    return "\\u0000" in text


def json_array(texts: Iterable[str]) -> str:
    """Put JSON texts into a JSON array."""
    return f"[{','.join(texts)}]"


def json_row(row: Mapping[str, Any], json_columns: Collection[str]) -> str:
    """Return a row as a JSON object; the JSON columns are JSON text already."""
    texts = [f'"{name}":{row[name]}' for name in json_columns if row.get(name) is not None]
    plain = {name: value for name, value in row.items() if name not in json_columns}
    return ",".join([to_json(plain).decode()[:-1], *texts]) + "}"
