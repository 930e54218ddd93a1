"""What the benchmark says: a table for people, and the figures for programs."""

import json
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

from benchmarks.measure import Figures

Facts: TypeAlias = Mapping[str, Any]

_PACKAGES = ("SQLAlchemy", "psycopg", "pydantic", "reliable-cmd")
_BUSY = 0.5  # of a core, on average
_NOTES = """
Times are medians, in µs for one call, or for one row in bulk. Ratios are taken round by round: their median, and the
lowest and the highest in brackets. Lower is better; ✓ and ✗ say whether the goal is met.

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
    if facts["load_average"] > _BUSY:
        console.print("Something else kept the machine busy: do not trust the times.", style="bold red")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "ours µs", "reference µs", "raw µs", "ours ÷ reference", "goal", "ours ÷ raw", "goal"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for title, rows in groupby(figures, lambda row: row.mode.title):
        table.add_row()
        table.add_row(Text(title, "bold"))
        for row in rows:
            times = [f"{median(row.times[side]):,.1f}" for side in ("ours", "reference", "raw")]
            ratios = *_ratio(row, "reference", row.goal), *_ratio(row, "raw", row.floor_goal)
            table.add_row(f"  {row.title}", *times, *ratios)
    console.print(table)
    console.print(_NOTES, soft_wrap=True)


def write_figures(facts: Facts, figures: Sequence[Figures], path: Path) -> None:
    """Write all that was measured as JSON."""
    rows = [
        {
            "group": row.mode.title,
            "name": row.name,
            "title": row.title,
            "calls_in_a_round": row.calls,
            "microseconds": {side: [round(time, 2) for time in times] for side, times in row.times.items()},
            "ours_to_reference": _summary(row.ratios("reference"), row.goal),
            "ours_to_raw": _summary(row.ratios("raw"), row.floor_goal),
        }
        for row in figures
    ]
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _ratio(row: Figures, other: str, goal: float | None) -> tuple[str, Text]:
    ratios = row.ratios(other)
    sign = ("✓", "green") if goal is None or median(ratios) <= goal else ("✗", "bold red")
    shown = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    return shown, Text("") if goal is None else Text.assemble(f"{goal:.2f} ", sign)


def _summary(ratios: Sequence[float], goal: float | None) -> dict[str, object]:
    every = [round(ratio, 4) for ratio in ratios]
    summary = {"median": round(median(ratios), 4), "lowest": min(every), "highest": max(every), "all": every}
    return {**summary, "goal": goal, "met": None if goal is None else median(ratios) <= goal}
