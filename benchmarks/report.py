"""What the benchmark reports: a table for people, and the figures for programs."""

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.figures import CORE, OTHERS, OURS, RAW, REFERENCE, Figures, summary

Facts: TypeAlias = Mapping[str, Any]

_PACKAGES = ("SQLAlchemy", "psycopg", "pydantic", "reliable-cmd", "langgraph-checkpoint-postgres", "dbos")
BUSY = 0.5  # of a core, on average
_NOTES = """
Times are medians, in µs for one call, or for one row in bulk. Ratios are taken round by round: their median, and the
lowest and the highest in brackets. Lower is better; ✓ and ✗ mark whether the goal is met.

What this does not measure:
- a network: client and server share one machine and its cores; of a distance there is only the delay that is added
- encryption, passwords, a server that has other clients too, and more data than fit into its memory
- the disk, unless --durable is given
- the start: connections are open, statements prepared and caches filled before the clock runs
- memory; other versions; other settings of engine and pool; other sizes of states and payloads
- what the reference leaves out: versions that prevent lost updates, harmless redelivery, errors for rows that are
  missing, checks of what is written and read, and the order of a list
"""


def machine() -> dict[str, str]:
    """Return what the benchmark runs on: nothing that names the computer or its owner."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part."""
    return {"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def show(console: Console, facts: Facts, figures: Sequence[Figures]) -> None:
    """Print the table, and what has to be known with it."""
    console.print(f"Benchmark of {facts['date']}", style="bold")
    for group in ("machine", "versions", "settings"):
        console.print(", ".join(f"{name} {value}" for name, value in facts[group].items()), soft_wrap=True)
    trips = facts["round_trip_microseconds"].items()
    console.print("A round trip: " + ", ".join(f"{time:,.0f} µs with {delay:g} ms added" for delay, time in trips))
    console.print(f"Load average at the start: {facts['load_average']:.2f}")
    if facts["load_average"] > BUSY:
        console.print("Something else kept the machine busy: do not trust the times.", style="bold red")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    headings = ["", *(f"{side} µs" for side in (OURS, REFERENCE, CORE, RAW))]
    for heading in (*headings, "ours ÷ reference", "goal", "ours ÷ core", "goal", "ours ÷ raw"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for title, rows in groupby(figures, lambda row: row.mode.title):
        table.add_row()
        table.add_row(Text(title, "bold"))
        for row in rows:
            times = [f"{median(row.times[side]):,.1f}" if row.times else "" for side in (OURS, REFERENCE, CORE, RAW)]
            ratios = [part for other in (REFERENCE, CORE) for part in _ratio(row, other)]
            table.add_row(f"  {row.title}", *times, *ratios, _ratio(row, RAW)[0])
            for peer in OTHERS[3:]:
                if peer in row.others():
                    time, ratio = median(row.times[peer]), _ratio(row, peer)[0]
                    table.add_row(f"    {peer}: {time:,.1f} µs, ours ÷ it {ratio}")
    console.print(table)
    console.print(_NOTES, soft_wrap=True)


def write_figures(figures: Sequence[Figures], path: Path) -> None:
    """Write the figures as CSV, a line for each row of the table and each side."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        times, ratios = ("median_us", "lowest_us", "highest_us"), ("ours_to_it", "lowest_ratio", "highest_ratio")
        lines.writerow(("mode", "operation", "side", "calls_in_a_round", *times, *ratios, "goal", "met"))
        for row in figures:
            for side in ([OURS] if row.times else []) + row.others():
                found = [f"{time:.2f}" for time in summary(row.times[side])] if row.times else [""] * 3
                line = [row.mode.title, row.name, side, row.calls or "", *found]
                if side != OURS:
                    goal, met = row.goal(side), row.is_met(side)
                    line += [f"{ratio:.4f}" for ratio in row.ratio(side)]
                    line += ["" if goal is None else f"{goal:.2f}", "" if met is None else "yes" if met else "no"]
                lines.writerow(line)


def _ratio(row: Figures, other: str) -> tuple[str, Text]:
    ratio, goal = row.ratio(other), row.goal(other)
    sign = ("✓", "green") if row.is_met(other) else ("✗", "bold red")
    shown = f"{ratio.median:.2f} ({ratio.lowest:.2f}-{ratio.highest:.2f})"
    return shown, Text("") if goal is None else Text.assemble(f"{goal:.2f} ", sign)
