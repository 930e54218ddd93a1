"""JSON text as PostgreSQL's `jsonb` takes it: everything that it would refuse, or silently change, is refused here."""

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

# In JSON text a NUL is written \u0000, with an even number of backslashes before it.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")

LONGEST = 268_435_455
"""The most bytes that `jsonb` can hold: the length of an element has 28 bits."""

# How Pydantic writes exponents that are not negative ("e+" in 1e+16), taken from what it writes: another version may
# leave out the sign.
_EXPONENT = to_json(1e16).decode().strip(".0123456789")

# Texts are matched too, so that what looks like a number inside one is passed over. `++` never gives back what it took:
# without it a long text would be searched again from each of its characters.
_TOKEN = re.compile(
    r'"(?:[^"\\]++|\\.)*+"|(?P<number>-?\d++(?:\.\d++)?[eE]\+?\d++)|(?P<constant>-?(?:NaN|Infinity))', re.DOTALL
)


def as_stored(text: str) -> str:
    """Return JSON text with its numbers as `jsonb` gives them back: without an exponent.

    A float without a fraction has none then either, and is read as an integer: `1e23` comes back as `10**23`.

    Raises:
        ValueError: It has a NaN or an infinity, which JSON does not know.
    """
    # Nearly all texts end here: a search for a word takes a tenth of the time of one for a pattern.
    if _EXPONENT not in text and "NaN" not in text and "Infinity" not in text:
        return text
    return _TOKEN.sub(_stored_token, text)


def _stored_token(token: re.Match[str]) -> str:
    if token["constant"]:
        raise ValueError("JSON has no NaN and no infinity")
    return format(Decimal(token["number"]), "f") if token["number"] else token[0]


def check_finite(text: str) -> None:
    """Look for numbers beyond floats, which are read as infinite.

    Raises:
        ValidationError: There is one.
    """
    _JSON_VALUE.validate_python(from_json(text))


def json_object(text: str) -> JsonObject:
    """Return the object that stored JSON text is, quickly.

    Raises:
        ValueError: It is none, or it nests too deep.
    """
    value: object = from_json(text)
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 - a stored value that does not fit, as others do
    return cast("JsonObject", value)


# The parser makes infinity of a number beyond floats. As `jsonb` writes numbers without an exponent, such a number has
# at least as many digits as the largest float.
_DIGITS = 309
# It begins where no digit stands before: searched from each digit of a long run, 5 MB of them took 2.3 s.
_LONG_NUMBER = re.compile(rf"(?<!\d)\d{{{_DIGITS}}}")


def check_numbers(texts: Iterable[str | None]) -> None:
    """Look for numbers beyond floats in stored JSON.

    Raises:
        ValueError: There may be one.
    """
    for text in texts:
        # A run of so many digits has one at one of these places, which are few.
        if text is not None and any(map(str.isdigit, text[_DIGITS - 1 :: _DIGITS])) and _LONG_NUMBER.search(text):
            raise ValueError("has a number that may be beyond floats")


def check_text(encoded: bytes, field: str) -> str:
    """Return JSON text, if `jsonb` can hold it.

    Raises:
        InvalidInputError: It is too long, or has a NUL character in it.
    """
    if len(encoded) > LONGEST:
        raise InvalidInputError(field, f"is too long: {len(encoded)} bytes of JSON, and jsonb holds {LONGEST}")
    text = encoded.decode()
    if "\\u0000" in text and _NUL.search(text):
        raise InvalidInputError(field, "contains a NUL character, which PostgreSQL cannot store")
    return text


def json_object_text(value: object, field: str) -> str:
    """Turn a JSON object into text that is sure to be read as the same object again.

    Args:
        value: A dictionary of the types that JSON has, and no others: not a tuple, a datetime, a key that is no string.
        field: What to call the value in an error.

    Raises:
        InvalidInputError: JSON or `jsonb` cannot hold the value: also NaN, infinity, a NUL character, a lone surrogate,
            a cycle, a number of more than 4,300 digits, a float that would come back as an integer, or more levels than
            can be read again.
    """
    try:
        # Pydantic's writer takes more than JSON. So what is read from its text must be the value again.
        text = check_text(to_json(value, inf_nan_mode="constants"), field)
        read = from_json(text, allow_inf_nan=False)
        if isinstance(read, dict) and as_stored(text) == text and read == value:
            return text
    except InvalidInputError:
        raise
    except Exception:  # noqa: BLE001, S110 - whatever it is, _why_refused looks for it
        pass
    raise InvalidInputError(field, _why_refused(value))


def _why_refused(value: object) -> str:
    """Say why an object cannot be stored, without anything of it."""
    try:
        _JSON_VALUE.validate_python(value)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        # Pydantic's own writer replaces a lone surrogate in a key by U+FFFD; encoding finds it.
        text.encode()
        JSON_OBJECT.validate_json(text)
        another = "would come back as another value; use the types that JSON has, and no others"
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
    """Put JSON texts into a JSON array."""
    return f"[{','.join(texts)}]"


def json_row(row: Mapping[str, Any], json_columns: Collection[str]) -> str:
    """Return a row as a JSON object; the JSON columns are JSON text already."""
    texts = [f'"{name}":{row[name]}' for name in json_columns if row.get(name) is not None]
    plain = {name: value for name, value in row.items() if name not in json_columns}
    return ",".join([to_json(plain).decode()[:-1], *texts]) + "}"
