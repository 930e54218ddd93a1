"""The options of the benchmark."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.data import LIST_STATUSES
from benchmarks.operations import operations

BULK = "bulk"  # the one row that is not of an operation

_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = _ROOT / "benchmarks" / "results"
_PAGE = _ROOT / "docs" / "benchmarks.md"
_CHECK = {"rounds": 1, "bulk_rounds": 1, "seconds": 0, "latency": [1], "list_sizes": [1, 3, 100]} | {
    "bulk_processes": 30,
    "bulk_steps": 100,
    "ended": 50,
}

NumberT = TypeVar("NumberT", int, float)


class Options(argparse.Namespace):
    """How to measure, and what."""

    rounds: int
    bulk_rounds: int
    seconds: float
    latency: list[float]
    list_sizes: list[int]
    bulk_processes: int
    bulk_steps: int
    tasks: int
    pool: int
    only: list[str]
    durable: bool
    results: Path
    page: Path
    check: bool
    is_partial: bool
    """Whether rows are left out."""
    ended: int = 5000
    """How many other processes are in the domain of those that `find_by_status` looks for."""


def parsed(arguments: Sequence[str] | None) -> Options:
    """Return the options of a command line, or exit with a message."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this library against hand-written SQL, on an embedded PostgreSQL of its own.",
    )
    add = parser.add_argument
    add("--rounds", type=_number(int, 1), default=15, help="how often each row is measured on all sides (15)")
    add("--bulk-rounds", type=_number(int, 1), default=3, help="the same for the row in bulk (3)")
    add("--seconds", type=_number(float, 0.001), default=0.1, help="how long one measurement takes, about (0.1)")
    add("--latency", type=_list(float), default=[1, 5], help="milliseconds to add to a round trip; 0: none (1,5)")
    add("--list-sizes", type=_list(int), default=[100, 1000], help="of find_by_status, besides 1 (100,1000)")
    add("--bulk-processes", type=_number(int, 1), default=10_000, help="how many to insert in bulk (10000)")
    add("--bulk-steps", type=_number(int, 1), default=100_000, help="the same for their steps (100000)")
    add("--tasks", type=_number(int, 2), default=16, help="how many tasks work at the same time (16)")
    add("--pool", type=_number(int, 1), default=8, help="how many connections they share (8)")
    add(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        help="names of rows, such as update,save,bulk (all); writes no file",
    )
    add("--durable", action="store_true", help="leave fsync and synchronous_commit on: measure the disk too")
    add("--results", type=Path, default=_FOLDER, help="the folder for the figures and the chart (benchmarks/results)")
    add("--page", type=Path, default=_PAGE, help="the page that has the tables (docs/benchmarks.md)")
    add("--check", action="store_true", help="measure next to nothing; show that all sides do the same work")
    options = parser.parse_args(arguments, namespace=Options())
    if options.check:
        vars(options).update(_CHECK)
    options.latency = [delay for delay in options.latency if delay]
    options.list_sizes = sorted({1, *options.list_sizes})
    if len(options.list_sizes) > len(LIST_STATUSES) or options.list_sizes[0] < 1:
        parser.error(f"--list-sizes takes up to {len(LIST_STATUSES) - 1} sizes, of 1 or more")
    names = [*(operation.name for operation in operations(options.list_sizes)), BULK]
    if unknown := set(options.only).difference(names):
        parser.error(f"--only knows no {', '.join(sorted(unknown))}; the rows are {', '.join(names)}")
    options.is_partial = bool(options.only)
    options.only = options.only or names
    return options


def _number(kind: Callable[[str], NumberT], least: float) -> Callable[[str], NumberT]:
    def number(text: str) -> NumberT:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be {least} or more")
        return value

    return number


def _list(kind: Callable[[str], NumberT]) -> Callable[[str], list[NumberT]]:
    def numbers(text: str) -> list[NumberT]:
        return [_number(kind, 0)(part) for part in text.split(",")]

    return numbers
