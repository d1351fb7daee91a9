from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.report import run as report
from planner.run_result import RunResult, Step
from tests import factories

STEPS = tuple(
    Step(number=n, loss=5.0 - n, grad_norm=1.5, seconds=s, peak_bytes=b, profiled=n == 5)
    for n, s, b in ((1, 40.0, 10), (2, 8.0, 30), (3, 9.0, 30), (4, 13.0, 20), (5, 30.0, 20))
)


def result(steps: tuple[Step, ...] = STEPS, device: str = "cuda", *, known: bool = True) -> RunResult:
    plan = factories.plan()
    return RunResult(plan=plan, device=device, steps=steps, predicted=plan.predicted if known else None)


def test_the_first_step_and_the_profiled_one_do_not_count() -> None:
    assert result().step_s == 9.0
    assert result().peak_bytes == 30
    assert result(STEPS[:1]).step_s == 40.0


def test_a_line_per_step() -> None:
    plan = factories.plan()
    heading = report.heading(plan).splitlines()
    line = report.step_line(plan, STEPS[1])
    assert len(heading) == 2 and heading[1].split() == ["step", "loss", "grad", "norm", "time", "tokens/s", "memory"]
    # 128 samples of 8192 tokens in 8 s
    assert line.split() == ["2", "3.0000", "1.5", "8.00", "s", "131,072", "30", "B"]
    assert len(line) == len(heading[1]) + 1


def test_predicted_stands_beside_measured() -> None:
    plan = factories.plan()
    assert plan.predicted is not None
    rows = {line.split("  ")[0].strip(): line for line in report.render(result(), traces=Path("t")).splitlines()}
    assert f"{plan.predicted.step_s / 9 - 1:+.1%} median of 3 steps" in rows["step time"]
    assert "116,508" in rows["tokens/s"]
    # FLOP over peak and time, of which only the time differs.
    assert f"{plan.predicted.mfu * plan.predicted.step_s / 9:.1%}" in rows["MFU"]
    assert "60.0 GiB" in rows["memory"] and "fullest device" in rows["memory"]
    assert "t/predicted.json" in report.render(result(), traces=Path("t"))


def test_without_a_prediction_nothing_is_made_up() -> None:
    text = report.render(result(device="cpu", known=False))
    assert "unknown" in text and "MFU" not in text and "%" not in text and "largest process" in text


def test_json_has_the_same_figures_twice() -> None:
    content = json.loads(report.to_json(result()))
    measured, predicted = content["measured"], content["predicted"]
    assert set(measured) == set(predicted) == {"step_s", "tokens_per_s", "mfu", "peak_bytes"}
    assert measured["tokens_per_s"] * measured["step_s"] == pytest.approx(128 * 8192)
    assert measured["mfu"] / predicted["mfu"] == pytest.approx(predicted["step_s"] / measured["step_s"])
    assert [step["number"] for step in content["steps"]] == [1, 2, 3, 4, 5]
    assert json.loads(report.to_json(result(known=False)))["predicted"] is None
