"""The tables in `docs/benchmarks.md`: each run writes them anew, between two markers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.figures import CORE, MEAN, OTHERS, RAW, REFERENCE, STEP, Figures, summary
from benchmarks.operations import Mode
from benchmarks.report import BUSY, Facts

_BEGIN, _END = "<!-- figures: `make bench` writes what follows -->", "<!-- end of the figures -->"
_NAMES = {REFERENCE: "hand-written SQL", CORE: "plain SQLAlchemy Core", RAW: "raw psycopg"}


def write_page(facts: Facts, figures: Sequence[Figures], path: Path) -> None:
    """Replace what stands between the markers."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(_BEGIN)
    after = rest.split(_END)[1]
    parts = [_facts(facts), _goals(figures), *_tables(figures), _peers(figures), _times(figures)]
    path.write_text("\n\n".join([before + _BEGIN, *parts, _END + after]), encoding="utf-8")


def _facts(facts: Facts) -> str:
    settings = facts["settings"]
    machine = ", ".join(f"{name} {value}" for name, value in facts["machine"].items())
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    lines = [
        (
            f"Measured on {facts['date']} in {settings['rounds']} rounds of {settings['seconds']:g} seconds for each "
            f"row and side. Machine: {machine}. Versions: {versions}. `fsync` {settings['fsync']}, "
            f"`synchronous_commit` {settings['synchronous_commit']}. Load average at the start: "
            f"{facts['load_average']:.2f}."
        ),
        "A round trip took "
        + ", ".join(f"{time:,.0f} µs with {ms:g} ms added" for ms, time in facts["round_trip_microseconds"].items())
        + ".",
    ]
    if facts["load_average"] > BUSY:
        lines.append("**Other programs kept the machine busy during this run. Do not rely on single figures.**")
    return "\n\n".join(lines)


def _goals(figures: Sequence[Figures]) -> str:
    lines = [
        (row.mode.title, row.title, _NAMES[other], f"{goal:.2f}", f"{row.ratio(other).median:.2f}", _sign(row, other))
        for row in figures
        for other in row.others()
        if (goal := row.goal(other)) is not None
    ]
    met = sum(line[-1] == "✓" for line in lines)
    heading = ("Without `conn`", "Row", "Ours ÷", "Goal: at most", "Measured", "Met")
    return f"### The goals\n\n{met} of {len(lines)} are met.\n\n{_table(heading, lines)}"


def _tables(figures: Sequence[Figures]) -> list[str]:
    modes = list(dict.fromkeys(row.mode for row in figures if row.mode.kind != "bulk"))
    bulk = [row for row in figures if row.mode.kind == "bulk"]
    tables: list[str] = []
    for other in (REFERENCE, CORE, RAW):
        titles = list(dict.fromkeys(row.title for row in figures if row.mode.kind != "bulk"))
        lines = [[title, *(_cell(figures, mode, title, other) for mode in modes)] for title in titles]
        table = _table(["Ours ÷ " + _NAMES[other], *(mode.title for mode in modes)], lines)
        tables.append(f"### Beside {_NAMES[other]}\n\n{table}")
        tables += [f"{row.mode.title}: {row.ratio(other).median:.2f}." for row in bulk]
    return tables


def _cell(figures: Iterable[Figures], mode: Mode, title: str, other: str) -> str:
    for row in figures:
        if row.mode == mode and row.title == title:
            return f"{row.ratio(other).median:.2f} {_sign(row, other)}".strip()
    return ""


def _sign(row: Figures, other: str) -> str:
    met = row.is_met(other)
    return "" if met is None else "✓" if met else "✗"


def _peers(figures: Sequence[Figures]) -> str:
    steps = [row for row in figures if row.name == STEP]
    shown: Callable[[Figures, str], str] = lambda row, other: (  # noqa: E731 - used twice
        f"{row.ratio(other).median:.2f}" if other in row.others() else ""
    )
    lines = [[row.mode.title, *(shown(row, other) for other in OTHERS)] for row in steps]
    heading = ["One step, ours ÷", *(_NAMES.get(other, other) for other in OTHERS)]
    return f"### One step beside others\n\n{_table(heading, lines)}"


def _times(figures: Sequence[Figures]) -> str:
    lines: list[list[str]] = []
    for row in figures:
        if row.mode.kind == "alone" and row.name != MEAN:
            sides = [row.times.get(side) for side in ("ours", *OTHERS)]
            lines.append([row.title, *("" if times is None else f"{summary(times).median:,.0f}" for times in sides)])
    heading = ["µs, one after another", "ours", *(_NAMES.get(other, other) for other in OTHERS)]
    return f"### Times\n\n{_table(heading, lines)}"


def _table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, ["---"] * len(heading), *lines))
