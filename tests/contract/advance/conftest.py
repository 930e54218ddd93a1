"""The processes that every test here begins with."""

from tests.support.advancing import committed, waiting

__all__ = ["committed", "waiting"]
