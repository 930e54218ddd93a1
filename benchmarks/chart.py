"""The chart: our time over the reference's, for each row of the table. Written by hand, so that the file is small."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.figures import REFERENCE, Figures

_LEFT, _SCALE, _RIGHT = 215, 260, 60  # pixels: the names, a ratio of 1, and what stands after the bar
_ROW, _TITLE, _TOP, _MARGIN = 17, 28, 52, 12
_FARTHEST = 2.0  # a ratio beyond it is drawn at the edge
_MET, _MISSED, _WITHOUT_GOAL = "#1a7f37", "#cf222e", "#0969da"
_STYLE = "text{font:11px sans-serif;fill:#24292f}.h{font-weight:bold;font-size:12px}.n{text-anchor:end}"


def draw(figures: Sequence[Figures], date: str, path: Path) -> None:
    """Write the chart, as SVG. The same figures give the same file."""
    y, parts = _TOP, list[str]()
    for title, rows in groupby(figures, lambda row: row.mode.title):
        y += _TITLE
        parts.append(f'<text class="h" x="{_MARGIN}" y="{y - 8}">{escape(title)}</text>')
        first = y
        for row in rows:
            parts += _drawn(row, y)
            y += _ROW
        parts.append(f'<path d="M{_x(1)} {first}V{y}" stroke="#24292f"/>')
    width, height = _x(_FARTHEST) + _RIGHT, y + _MARGIN
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<style>{_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="h" x="{_MARGIN}" y="22">Our time ÷ the time of hand-written SQL, {escape(date)}</text>',
        (
            f'<text x="{_MARGIN}" y="38">Lower is better. The bar is the median of the rounds, the line their spread. '
            "Thick strokes are goals: green is met, red is not, blue has none.</text>"
        ),
    ]
    path.write_text("\n".join([*head, *parts, "</svg>"]) + "\n", encoding="utf-8")


def _drawn(row: Figures, top: int) -> list[str]:
    """Return one row: its name, its bar, the spread and the goal."""
    ratio, goal, middle = row.ratio(REFERENCE), row.goal(REFERENCE), top + _ROW // 2
    color = _WITHOUT_GOAL if goal is None else _MET if row.is_met(REFERENCE) else _MISSED
    parts = [
        f'<text class="n" x="{_LEFT - 6}" y="{top + 12}">{escape(row.title)}</text>',
        f'<path d="M{_LEFT} {middle}H{_x(ratio.median)}" stroke="{color}" stroke-width="11" opacity=".3"/>',
        f'<path d="M{_x(ratio.lowest)} {middle}H{_x(ratio.highest)}" stroke="{color}" stroke-width="1.5"/>',
        f'<text x="{_x(max(ratio.highest, 1)) + 6}" y="{top + 12}">{ratio.median:.2f}</text>',
    ]
    if goal is not None:
        parts.append(f'<path d="M{_x(goal)} {top + 1}v{_ROW - 2}" stroke="#24292f" stroke-width="3"/>')
    return parts


def _x(ratio: float) -> int:
    return _LEFT + round(min(ratio, _FARTHEST) * _SCALE)
