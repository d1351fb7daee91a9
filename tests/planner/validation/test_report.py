from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from planner.calibration.shipped import Shipped, ShippedConstant
from planner.validation import calibration_page, page, report
from planner.validation.statistics import summarise
from tests.planner.validation.rows import outcome

ROWS = [
    *(outcome(1.0 + i / 10, id=f"row-{i}", core=i < 2, peak_memory_gib=38.0, memory_kind="reserved") for i in range(6)),
    outcome(1.1, id="routed", experts=8, main_kind="moe"),
    outcome(None, id="unpriced", why="no profile | of it"),
    outcome(peak_gib=90, id="too-large", out_of_memory=True, step_time_s=None),
    outcome(1.2, id="recalled", trust="C"),
]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_row_stands_once_and_no_line_is_wider(width: int) -> None:
    text = report.render(ROWS, summarise(ROWS), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    for row in ROWS:
        assert len(re.findall(rf"(?<![\w-]){row.case.id}(?![\w-])", text)) == 1, row.case.id
    assert text == report.render(ROWS, summarise(ROWS), width=width)


def test_text_says_what_was_found() -> None:
    text = report.render(ROWS, summarise(ROWS), width=120)
    assert "1.10 s" in text and "+10.0%" in text and "OOM" in text
    assert "row-1 *" in text and "row-2 *" not in text
    assert "unpriced; no profile | of it" in text
    assert "recalled; trust C: indicative only" in text
    assert "10 rows, 8 scored, 7 of these priced" in text
    assert "7 of 7 runs that ran are predicted to fit, 1 of 1 that were out of memory not to" in text
    assert "1 rows: no profile | of it" in text


def test_page_has_every_row_and_the_given_sections() -> None:
    summary = summarise(ROWS)
    text = page.render_page(
        ROWS, summary, date="2025-01-31", command="meshwright validate", calibration="## Constants\n"
    )
    assert "Made on 2025-01-31 with `meshwright validate`: 10 rows" in text
    assert "## Constants" in text
    assert "no profile \\| of it" in text
    for row in ROWS:
        assert f"| {row.case.id}" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:
        assert len({line.count("|") - line.count("\\|") for line in table.splitlines()}) == 1


def test_picture_has_a_point_per_priced_row_and_is_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    svg = page.render_picture(ROWS)
    assert svg == page.render_picture(ROWS)
    root = ElementTree.fromstring(svg)
    points = {
        group.get("id"): len(group.findall(".//{http://www.w3.org/2000/svg}use"))
        for group in root.iter("{http://www.w3.org/2000/svg}g")
        if group.get("id") in ("dense", "mixture of experts")
    }
    assert points == {"dense": 6, "mixture of experts": 1}


def test_predictions_without_the_source_are_told_from_in_sample_ones() -> None:
    left_out = [outcome(1.3, id=row.case.id, core=row.case.core) if row.priced else row for row in ROWS]
    summary = summarise(ROWS, left_out)
    assert summary.in_sample == summarise(ROWS).headline != summary.headline
    assert summary.headline["dense"].median == pytest.approx(0.3)
    text = report.render(ROWS, summary, width=120)
    assert "headline (*), dense, left out by source" in text and "headline (*), dense, in-sample" in text
    assert "in-sample" not in report.render(ROWS, summarise(ROWS), width=120)


def test_the_page_compares_datasheets_and_constants() -> None:
    left_out = [outcome(1.3, id=row.case.id, core=row.case.core) if row.priced else row for row in ROWS]
    constants = {"gemm/a100": ShippedConstant(value=1.25, sd=0.05, rows=7, sources=2)}
    shipped = Shipped(date="2025-01-31", rows=6, sources=1, constants=constants)
    text = calibration_page.section(shipped, summarise(ROWS), summarise(ROWS, left_out), summarise(left_out))
    assert "| dense | left out by source | 2 | 30.0%" in text
    assert "| dense | all, in-sample | 2 | 5.0%" in text
    assert "| `gemm/a100` | products: a100 | 1.250 | 0.050 | 7 | 2 |" in text
    for found in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in found.splitlines()}) == 1
