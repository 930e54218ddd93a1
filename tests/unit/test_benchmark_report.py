"""What the benchmark makes of its figures: means, goals, the CSV, the chart and the page."""

import csv
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.chart import draw
from benchmarks.figures import Figures, with_means
from benchmarks.operations import Kind, Mode
from benchmarks.page import write_page
from benchmarks.report import write_figures

FACTS = {
    "date": "2026-01-31 12:00 UTC",
    "machine": {"cores": "2"},
    "versions": {"PostgreSQL": "18.0"},
    "settings": {"rounds": 3, "seconds": 0.1, "fsync": "off", "synchronous_commit": "off"},
    "load_average": 0.25,
    "round_trip_microseconds": {0.0: 100.0},
}
MARKERS = "<!-- figures: `make bench` writes what follows -->", "<!-- end of the figures -->"
PAGE = f"# Title\n\n{MARKERS[0]}\n\nold\n\n{MARKERS[1]}\n\nThe end.\n"


def row(name: str, ours: list[float], theirs: list[float], mode: Mode) -> Figures:
    return Figures(mode, name, f"the {name}", 10, {"ours": ours, "reference": theirs, "core": theirs, "raw": theirs})


def rows(kind: Kind = "alone", delay: float = 0) -> list[Figures]:
    mode = Mode(f"mode {kind}", kind, delay=delay)
    return with_means(
        [
            row("save", [2, 8, 50], [1, 1, 50], mode),
            row("update", [8, 2, 50], [1, 1, 50], mode),
            row("step", [94, 95, 97], [100, 100, 100], mode),
        ]
    )


def test_the_mean_is_geometric_round_by_round_and_without_the_step() -> None:
    *_, mean = rows()
    assert mean.name == "mean"
    assert mean.ratios("reference") == pytest.approx([4, 4, 1])
    assert mean.ratio("reference") == pytest.approx((4, 1, 4))


@pytest.mark.parametrize(
    ("kind", "delay", "of_step", "of_mean"),
    [
        ("alone", 0, 0.95, 1.10),
        ("together", 0, 1.10, 1.10),
        ("delayed", 1, 0.33, 0.45),
        ("delayed", 5, 0.25, 0.38),
        ("delayed", 20, None, None),
        ("given", 0, None, None),
    ],
)
def test_goals(kind: Kind, delay: float, of_step: float | None, of_mean: float | None) -> None:
    save, _, step, mean = rows(kind, delay)
    assert (save.goal("reference"), step.goal("reference"), mean.goal("reference")) == (None, of_step, of_mean)
    assert step.goal("core") == mean.goal("core") == (None if of_step is None else 0.50)
    assert step.goal("raw") is None


def test_a_goal_is_met_by_the_median_that_equals_it() -> None:
    _, _, step, mean = rows()
    assert (step.is_met("reference"), step.is_met("core"), mean.is_met("reference")) == (True, False, False)


def test_the_csv_has_a_line_for_each_row_and_side(tmp_path: Path) -> None:
    write_figures(rows(), tmp_path / "figures.csv")
    with (tmp_path / "figures.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["operation"], line["side"]) for line in lines if line["operation"] in {"step", "mean"}] == [
        *(("step", side) for side in ("ours", "reference", "core", "raw")),
        *(("mean", side) for side in ("reference", "core", "raw")),
    ]
    step = lines[9]
    assert (step["median_us"], step["lowest_us"], step["highest_us"]) == ("100.00", "100.00", "100.00")
    assert (step["ours_to_it"], step["lowest_ratio"], step["highest_ratio"]) == ("0.9500", "0.9400", "0.9700")
    assert (step["goal"], step["met"]) == ("0.95", "yes")


def test_the_page_is_changed_between_the_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    write_page(FACTS, rows(), page)
    once = page.read_text(encoding="utf-8")
    assert once.startswith("# Title\n\n<!-- figures:")
    assert once.endswith("<!-- end of the figures -->\n\nThe end.\n")
    assert "old" not in once
    assert "| the step | 0.95 ✓ |" in once
    assert "| the save | 2.00 |" in once
    assert "1 of 4 are met." in once
    assert "busy" not in once
    write_page({**FACTS, "load_average": 3.0}, rows(), page)
    twice = page.read_text(encoding="utf-8")
    assert "busy" in twice
    write_page(FACTS, rows(), page)
    assert page.read_text(encoding="utf-8") == once


def test_the_chart_is_small_and_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "ratios.svg"
    draw([each for _ in range(16) for each in rows()], "2026-01-31 <12:00> UTC", path)
    texts = [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314 - our own file
    assert texts.count("the step") == 16
    assert texts.count("0.95") == 16
    assert path.stat().st_size < 60_000
