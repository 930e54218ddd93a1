"""The chart: our time over the reference's, for each row of the table."""

# pyright: reportUnknownMemberType=false
# (matplotlib declares no types for the keyword arguments that it passes on)

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import Figures

_WIDTH, _ROW_HEIGHT, _PANEL_HEIGHT, _TITLE_HEIGHT = 9.4, 0.24, 0.75, 0.6  # inches
_FARTHEST = 2.0  # a ratio beyond it is drawn at the edge
_MET, _MISSED, _WITHOUT_GOAL, _GOAL = "#1a7f37", "#cf222e", "#0969da", "#24292f"


def draw(figures: Sequence[Figures], date: str, path: Path) -> None:
    """Write the chart, as SVG. The same figures give the same file."""
    panels = [(title, list(rows)) for title, rows in groupby(figures, lambda row: row.mode.title)]
    pairs = [panels[first : first + 2] for first in range(0, len(panels), 2)]
    heights = [max(len(rows) for _, rows in pair) * _ROW_HEIGHT + _PANEL_HEIGHT for pair in pairs]
    farthest = min(_FARTHEST, max(1.1, *(max(row.ratios("reference")) for row in figures)))
    with mpl.rc_context({"svg.hashsalt": "commandbus-process", "font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(_WIDTH, sum(heights) + _TITLE_HEIGHT), layout="constrained", facecolor="white")
        figure.suptitle(
            f"Our time ÷ the reference's: median and spread of the rounds, {date}\n"
            "Lower is better. The strokes are the goals: green is met, red is not, blue has none.",
            fontsize=10.5,
        )
        grid = figure.add_gridspec(len(pairs), 2, height_ratios=heights)
        for line, pair in enumerate(pairs):
            for column, (title, rows) in enumerate(pair):
                axes = figure.add_subplot(grid[line, column])
                axes.set_title(title, fontsize=9.5, fontweight="bold", loc="left")
                names = [row.title for row in rows]
                # The right one of a pair has the same rows, as a rule, and then needs no second list of their names.
                is_named = column == 0 or names != [row.title for row in pair[0][1]]
                axes.set_yticks(range(len(rows)), names if is_named else [""] * len(rows))
                axes.set_ylim(max(len(some) for _, some in pair) - 0.4, -0.6)
                axes.set_xlim(0, farthest)
                axes.spines[["top", "right"]].set_visible(False)
                _draw_rows(axes, rows, farthest)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_rows(axes: Axes, rows: Sequence[Figures], farthest: float) -> None:
    axes.axvline(1, color="black", linewidth=0.8)
    for position, row in enumerate(rows):
        ratios, middle = row.ratios("reference"), row.ratio("reference")
        color = _WITHOUT_GOAL if row.goal is None else _MET if middle <= row.goal else _MISSED
        axes.barh(position, min(middle, farthest), height=0.6, color=color, alpha=0.25)
        axes.plot([min(ratios), max(ratios)], [position, position], color=color, linewidth=1.5)
        axes.plot(middle, position, "o", color=color, markersize=4)
        if row.goal is not None:
            axes.plot([row.goal, row.goal], [position - 0.4, position + 0.4], color=_GOAL, linewidth=2)
