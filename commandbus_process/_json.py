"""Write and read JSON for PostgreSQL's `jsonb`, and reject what `jsonb` would reject or silently change."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any, cast

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from commandbus_process._reasons import explain_json
from commandbus_process.errors import InvalidInputError
from commandbus_process.models import JsonObject

_STRICT = ConfigDict(allow_inf_nan=False, hide_input_in_errors=True)
JSON_OBJECT: TypeAdapter[JsonObject] = TypeAdapter(JsonObject, config=_STRICT)
_JSON_VALUE: TypeAdapter[JsonValue] = TypeAdapter(JsonValue, config=_STRICT)

# In JSON text, a NUL is \u0000 with an even number of backslashes before it.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")

LONGEST = 268_435_455
"""The maximum number of bytes in `jsonb`: the length of an element has 28 bits."""

# How this version of Pydantic writes an exponent that is not negative: "e+" in 1e+16. Another version may write no
# sign, so it is taken from Pydantic's own output.
_EXPONENT = to_json(1e16).decode().strip(".0123456789")

# The pattern matches JSON strings, too, so that numbers inside a string are skipped. `++` never backtracks: with `+`, a
# long string would be searched again from each of its characters.
_TOKEN = re.compile(
    r'"(?:[^"\\]++|\\.)*+"|(?P<number>-?\d++(?:\.\d++)?[eE]\+?\d++)|(?P<constant>-?(?:NaN|Infinity))', re.DOTALL
)


def as_stored(text: str) -> str:
    """Return JSON text with its numbers as `jsonb` returns them: without an exponent.

    So a float such as `1e23`, which is written without a fraction, comes back as the integer `10**23`.

    Raises:
        ValueError: It has a NaN or an infinity, which JSON does not have.
    """
    # Nearly all texts return here. Searching for a word takes a tenth of the time of searching for a pattern.
    if _EXPONENT not in text and "NaN" not in text and "Infinity" not in text:
        return text
    return _TOKEN.sub(_stored_token, text)


def _stored_token(token: re.Match[str]) -> str:
    if token["constant"]:
        raise ValueError("JSON has no NaN and no infinity")
    return format(Decimal(token["number"]), "f") if token["number"] else token[0]


def check_finite(text: str) -> None:
    """Check that no number is beyond the range of a float. Such a number would be read as infinity.

    Raises:
        ValidationError: There is one.
    """
    _JSON_VALUE.validate_python(from_json(text))


def checked_object(value: object) -> JsonObject:
    """Return a JSON object, if it is one that has only JSON's own types.

    Raises:
        ValueError: It is not. The message quotes nothing of it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}")  # noqa: TRY004 - like every other value that does not fit
    try:
        _JSON_VALUE.validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(explain_json(error)) from None
    return cast("JsonObject", value)


def json_object(text: str) -> JsonObject:
    """Return the object in stored JSON text. This is the fast path: numbers are not checked.

    Raises:
        ValueError: It is not a JSON object, or is nested too deeply.
    """
    value: object = from_json(text)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - like every other stored value that does not fit
    return cast("JsonObject", value)


# The parser turns a number beyond floats into infinity. `jsonb` writes numbers without an exponent, so such a number
# has at least as many digits as the largest float.
_DIGITS = 309
# A match can begin only where no digit precedes. Without that, the search starts again at each digit of a long number:
# 2.3 s for 5 MB of digits.
_LONG_NUMBER = re.compile(rf"(?<!\d)\d{{{_DIGITS}}}")


def check_numbers(texts: Iterable[str | None]) -> None:
    """Check that stored JSON has no numbers beyond floats.

    Raises:
        ValueError: There may be one.
    """
    for text in texts:
        # Look at every 309th character first. A number of 309 digits has a digit at one of these positions.
        if text is not None and any(map(str.isdigit, text[_DIGITS - 1 :: _DIGITS])) and _LONG_NUMBER.search(text):
            raise ValueError("has a number that may be beyond floats")


def check_text(encoded: bytes, field: str) -> str:
    """Return JSON text, if `jsonb` can store it.

    Raises:
        InvalidInputError: It is too long, or has a NUL character.
    """
    if len(encoded) > LONGEST:
        raise InvalidInputError(field, f"is too long: {len(encoded)} bytes of JSON, and jsonb holds {LONGEST}")
    text = encoded.decode()
    if "\\u0000" in text and _NUL.search(text):
        raise InvalidInputError(field, "contains a NUL character, which PostgreSQL cannot store")
    return text


def json_object_text(value: object, field: str) -> str:
    """Turn a JSON object into text that will be read as the same object again.

    Args:
        value: A dictionary that has only JSON's own types: no tuple, no datetime, only strings as keys.
        field: The name of the value in an error.

    Raises:
        InvalidInputError: JSON or `jsonb` cannot store the value. Examples are NaN, infinity, a NUL character, a lone
            surrogate, a cycle, a number of more than 4,300 digits, a float that would come back as an integer, and more
            levels than can be read again.
    """
    try:
        # Pydantic's writer accepts more than JSON's types. So its text is read again, and must give the same value.
        text = check_text(to_json(value, inf_nan_mode="constants"), field)
        read = from_json(text, allow_inf_nan=False)
        if isinstance(read, dict) and as_stored(text) == text and read == value:
            return text
    except InvalidInputError:
        raise
    except Exception:  # noqa: BLE001, S110 - whatever it is, _why_refused finds out
        pass
    raise InvalidInputError(field, _why_refused(value))


def _why_refused(value: object) -> str:
    """Return why an object cannot be stored. The text quotes nothing of the object."""
    try:
        _JSON_VALUE.validate_python(value)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        # Encoding finds a lone surrogate. Pydantic's writer would replace it in a key by U+FFFD.
        text.encode()
        JSON_OBJECT.validate_json(text)
        another = "would come back as another value; use only the types that JSON has"
        return another if as_stored(text) == text else NUMBER_CHANGES
    except ValidationError as error:
        return explain_json(error)
    except UnicodeEncodeError:
        return "contains a lone surrogate, which UTF-8 cannot encode"
    except Exception as error:  # noqa: BLE001 - the caller's class may raise anything
        return f"cannot be written as JSON ({type(error).__name__})"


NUMBER_CHANGES = (
    "has a float of 1e16 or more, which jsonb gives back as an integer; "
    "write it as an integer or a string, or give it a field of type float in a typed state"
)


def json_array(texts: Iterable[str]) -> str:
    """Return JSON texts as one JSON array."""
    return f"[{','.join(texts)}]"


def json_row(row: Mapping[str, Any], json_columns: Collection[str]) -> str:
    """Return a row as a JSON object. The values of the JSON columns are JSON text already."""
    texts = [f'"{name}":{row[name]}' for name in json_columns if row.get(name) is not None]
    plain = {name: value for name, value in row.items() if name not in json_columns}
    return ",".join([to_json(plain).decode()[:-1], *texts]) + "}"
