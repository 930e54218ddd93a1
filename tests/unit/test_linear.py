"""Reading and writing take time in proportion to the length of a text. Senders of replies choose those texts."""

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from commandbus_process import InvalidInputError
from commandbus_process._json import as_stored, check_numbers, json_object_text
from commandbus_process._states import States
from tests.support.states import process_with


def seconds(work: Callable[[], object]) -> float:
    """The least of three times. The thread's own time, since other programs run too.

    Without the garbage collector: a full collection takes time in proportion to all that the tests have made.
    """
    taken: list[float] = []
    gc.disable()
    try:
        for _ in range(3):
            start = time.thread_time()
            work()
            taken.append(time.thread_time() - start)
    finally:
        gc.enable()
    return min(taken)


class OfAny(BaseModel):
    value: Any = None


def write_typed(value: object) -> object:
    codec: States[Any] = States(OfAny)
    try:
        return codec.write(process_with(OfAny(value=value)))
    except InvalidInputError as error:
        return error


def write_json(value: object) -> object:
    try:
        return json_object_text({"value": value}, "state")
    except InvalidInputError as error:
        return error


def check(text: str) -> object:
    try:
        check_numbers([text])
    except ValueError as error:
        return error
    return None


DIGITS = "1" * 308

# What makes a value of a length that is in proportion to its argument, and what is done with it.
WORK: dict[str, tuple[Callable[[int], Any], Callable[[Any], object]]] = {
    "short runs of digits, read": (lambda n: (DIGITS + " ") * n, check),
    "a long run of digits, read": (lambda n: "1" * 307 + "," + "1" * 308 * n, check),
    "digits of other scripts, read": (lambda n: "\u0664" * 308 * n, check),
    "digits in a text, written": (lambda n: DIGITS * n, write_json),
    "backslashes, written": (lambda n: "\\" * 300 * n + "\0", write_json),
    "literal backslash-u0000, written": (lambda n: "\\u0000" * 50 * n, write_json),
    "quotes and exponents, written": (lambda n: '"1e+16,NaN' * 30 * n, write_json),
    "quotes and exponents, typed": (lambda n: '"1e+16,NaN' * 30 * n, write_typed),
    "large floats, typed": (lambda n: [1e300] * n, write_typed),
    "keys with exponents, written": (lambda n: {f"e+{i}": [f"[1e+{i}"] for i in range(5 * n)}, write_json),
    "many that are refused, written": (lambda n: [float("nan")] * 10 * n, write_json),
    "an open text": (lambda n: '"e+' + "a\\\\" * 100 * n, as_stored),
}


@pytest.mark.parametrize("name", WORK)
def test_four_times_the_text_takes_about_four_times_as_long(name: str) -> None:
    """Sixteen times as long if it were quadratic; ten leaves some room."""
    make, work = WORK[name]
    short, long = make(1_000), make(4_000)
    assert seconds(lambda: work(long)) < 10 * seconds(lambda: work(short)) + 0.01


def test_long_runs_of_digits_take_no_longer_than_short_ones() -> None:
    """Searched again from each digit of a run, they took a hundred times as long: 2.3 s for the 5 MB of one reply."""
    short_runs, long_runs = "1 " * 154 * 10_000, (DIGITS[:-1] + " ") * 10_000
    assert len(short_runs) == len(long_runs)
    assert seconds(lambda: check(long_runs)) < 10 * seconds(lambda: check(short_runs)) + 0.01
