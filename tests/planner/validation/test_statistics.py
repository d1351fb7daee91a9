from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from planner.validation.cases import CannotPriceError, Case
from planner.validation.outcomes import Outcome, entries, price_all
from planner.validation.statistics import accuracies, accuracy, feasibility, rankings, summarise
from tests.planner.validation.rows import Price, case, outcome


def test_accuracy_is_of_absolute_errors_and_bias_of_signed_ones() -> None:
    found = accuracy([outcome(1.1), outcome(0.8), outcome(1.3), outcome(None)])
    assert (found.rows, found.priced) == (4, 3)
    assert found.median == pytest.approx(0.2)
    assert found.bias == pytest.approx(0.1)
    assert found.p90 == pytest.approx(np.percentile([0.1, 0.2, 0.3], 90))
    nothing = accuracy([outcome(None)])
    assert (nothing.rows, nothing.priced, nothing.median, nothing.p90, nothing.bias) == (1, 0, None, None, None)


def test_memory_is_compared_with_what_the_counter_counts() -> None:
    allocated = outcome(peak_gib=40, peak_memory_gib=40.0, memory_kind="allocated")
    taken = outcome(peak_gib=40, peak_memory_gib=40.0, memory_kind="nvidia-smi")
    assert allocated.memory_error == pytest.approx(-0.25)
    assert taken.memory_error == pytest.approx((1.12 * 30 + 4.2) / 40 - 1)
    assert outcome().memory_error is None
    assert accuracy([allocated, taken], "memory").bias == pytest.approx((1.12 * 30 + 4.2 + 30) / 80 - 1)


def test_groups_are_told_apart_largest_first() -> None:
    rows = [outcome(1.1), outcome(1.2, hardware="H100-80GB-SXM"), outcome(1.3, hardware="H100-80GB-SXM")]
    found = accuracies(rows, lambda row: row.hardware)
    assert list(found) == ["H100-80GB-SXM", "A100-80GB-SXM"]
    assert found["H100-80GB-SXM"].median == pytest.approx(0.25)


def test_ranks_are_of_seconds_per_token_within_one_sweep() -> None:
    measured, predicted = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.5, 1.2, 3.5, 3.0, 6.0, 5.0]
    rows = [
        outcome(p * (1 + i % 2), step_time_s=m * (1 + i % 2), global_batch=64 * (1 + i % 2))
        for i, (m, p) in enumerate(zip(measured, predicted, strict=True))
    ]
    others = [outcome(1.0, gpus=16), outcome(1.0, precision="fp8"), outcome(1.0, seq_len=4096)]
    (found,) = rankings([*rows, *others])
    assert found.rows == 6
    assert found.spearman == pytest.approx(np.corrcoef(rankdata(measured), rankdata(predicted))[0, 1])
    assert (found.best_place, found.best_found) == (2, True)
    assert rankings(rows[:4]) == ()


def test_equal_predictions_have_no_rank() -> None:
    (found,) = rankings([outcome(1.0, step_time_s=1.0 + i) for i in range(5)])
    assert (found.spearman, found.best_place) == (None, 1)


def test_feasibility_counts_what_ran_and_what_did_not() -> None:
    rows = [
        outcome(peak_gib=70),
        outcome(peak_gib=90),
        outcome(peak_gib=90, out_of_memory=True),
        outcome(peak_gib=70, out_of_memory=True),
        outcome(None, out_of_memory=True),
        outcome(peak_gib=70, trust="C"),
    ]
    found = feasibility(rows)
    assert (found.ran, found.ran_predicted) == (2, 1)
    assert (found.out_of_memory, found.out_of_memory_predicted) == (2, 1)


def test_summary_scores_what_the_rule_says() -> None:
    rows = [
        outcome(1.1, core=True),
        outcome(1.3),
        outcome(1.2, core=True, experts=8),
        outcome(9.0, core=True, trust="C"),
        outcome(None, why="no such machine"),
    ]
    found = summarise(rows)
    assert (found.rows, found.scored) == (5, 4)
    assert found.headline["dense"].median == pytest.approx(0.1)
    assert found.headline["moe"].median == pytest.approx(0.2)
    assert (found.all_scored["dense"].rows, found.all_scored["dense"].priced) == (3, 2)
    assert found.not_priced == {"no such machine": 1}


def test_one_row_that_fails_does_not_end_the_run() -> None:
    def price(row: Case) -> Any:
        if row.id == "unknown":
            raise CannotPriceError("the source does not state gpus")
        if row.id == "bug":
            raise ZeroDivisionError("float division by zero")
        return Price(float("nan") if row.id == "nan" else 2.0)

    found = price_all([case(id=name) for name in ("unknown", "bug", "nan", "fine")], price)
    assert [row.why for row in found] == [
        "the source does not state gpus",
        "ZeroDivisionError: float division by zero",
        "ValueError: a step of nan s",
        None,
    ]
    assert found[3].time_error == pytest.approx(1.0)


def test_entries_give_time_and_memory_of_what_is_measured() -> None:
    time, memory = entries(outcome(1.25, peak_gib=44, peak_memory_gib=40.0, memory_kind="reserved"))
    assert (time["quantity"], time["predicted"], time["measured"], time["unit"]) == ("time", 1.25, 1.0, "s")
    assert (time["error"], time["why"]) == (pytest.approx(0.25), None)
    assert (memory["quantity"], memory["predicted"], memory["measured"]) == ("memory", pytest.approx(1.12 * 30), 40.0)
    assert (memory["unit"], memory["error"]) == ("GiB", pytest.approx(-0.16))
    (failed,) = entries(outcome(peak_gib=90, out_of_memory=True, step_time_s=None))
    assert (failed["quantity"], failed["measured"], failed["error"]) == ("memory", None, None)
    assert (failed["predicted_fits"], failed["scored"]) == (False, False)
    (bare,) = entries(outcome(None, why="no layout", step_time_s=None))
    assert (bare["quantity"], bare["predicted"], bare["measured"], bare["why"]) == ("time", None, None, "no layout")


def test_entries_give_the_figures_that_the_source_prints() -> None:
    tokens = 64 * 2048 / 8
    (time,) = entries(outcome(2.0, tokens_per_s_per_gpu=tokens, printed=("tokens_per_s_per_gpu",)))
    assert time["metrics"] == {
        "tokens_per_s_per_gpu": {"predicted": tokens / 2, "measured": tokens, "unit": "tokens/s/device"}
    }


def test_an_outcome_without_a_price_has_no_error() -> None:
    row = Outcome(case(), None, "why")
    assert (row.time_error, row.memory_error, row.fits, row.memory_bytes) == (None, None, None, None)
