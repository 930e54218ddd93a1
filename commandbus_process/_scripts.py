"""The arguments of the commands that print a script for psql."""

import argparse
import sys

from typing_extensions import override


class ScriptParser(argparse.ArgumentParser):
    """Prints its usage and the module's text to standard error, never into the pipe that runs the script.

    So there is no `--help` either: it would be printed to standard output.

    Args:
        text: What is printed after the usage.
        prog: How the command is called.
        usage: Its arguments.
    """

    def __init__(self, text: str, prog: str, usage: str) -> None:
        super().__init__(prog=prog, usage=usage, add_help=False, allow_abbrev=False)
        self._text = text

    @override
    def print_usage(self, file: object = None) -> None:
        sys.stderr.write(f"{self.format_usage()}\n{self._text}\n")
