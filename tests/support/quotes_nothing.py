"""Types of states that the tests of this name share."""

import traceback

SECRET = "hunter2"  # noqa: S105 - what must not be quoted


def check_quotes_nothing(error: BaseException) -> None:
    printed = "".join(traceback.format_exception(error))
    # The lines of source code that a traceback shows are the test's own.
    told = [line for line in printed.splitlines() if not line.startswith("    ")]
    for words in (str(error), repr(error), "\n".join(told), *map(str, vars(error).values())):
        assert SECRET not in words
