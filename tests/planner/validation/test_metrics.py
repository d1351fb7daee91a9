from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from planner.validation.case_files import load_cases
from planner.validation.cases import MEASURED, Case
from planner.validation.metrics import measured_step_s, metric_at, step_flop, step_s_of
from tests.planner.validation.rows import case, published

GPT = {"layers": 24, "hidden": 2304, "ffn": 9216, "heads": 24, "kv_heads": 24, "vocab": 51200, "gated_mlp": False}


def gpt(**fields: Any) -> Case:
    return case(**GPT | {"recompute": "full", "flops_kind": "sc21", "step_time_s": None, "gpus": 32} | fields)


def test_measured_step_is_the_stated_one_else_the_best_figure_there_is() -> None:
    tokens = 64 * 2048
    assert measured_step_s(case(step_time_s=2.0, tokens_per_s_per_gpu=1.0)) == 2.0
    assert measured_step_s(case(step_time_s=None, tokens_per_s_per_gpu=tokens / 8 / 3)) == pytest.approx(3)
    assert measured_step_s(case(step_time_s=None, samples_per_s=16.0)) == 4.0
    assert measured_step_s(case(step_time_s=None, mfu=0.4)) is None
    assert measured_step_s(gpt(tflops_per_gpu=137.0, global_batch=512)) == pytest.approx(3.528, rel=1e-3)


def test_definitions_against_figures_that_sources_print() -> None:
    # SC21, table 1: 1.7 B parameters, 137 TFLOP/s; arithmetic by hand of 96 B s L h^2 (1 + s/6h + V/16Lh).
    found = step_flop(gpt(global_batch=512))
    assert found == pytest.approx(96 * 512 * 2048 * 24 * 2304**2 * (1 + 2048 / (6 * 2304) + 51200 / (16 * 24 * 2304)))
    # Counted by its products, the same model has the same FLOP: full attention and an MLP of 4h are SC21's.
    counted = step_flop(gpt(flops_kind="attention-full"))
    assert counted == pytest.approx(step_flop(gpt(recompute="none")), rel=1e-12)


def test_recomputation_counts_as_a_metric_says() -> None:
    full = gpt(flops_kind="sc21", peak_tflops_assumed=312.0)
    assert metric_at(full, "hfu", 1.0) == pytest.approx(4 / 3 * metric_at(full, "mfu", 1.0))
    assert metric_at(full, "hfu", 1.0) * 312 == pytest.approx(metric_at(full, "tflops_per_gpu", 1.0))
    model = gpt(flops_kind="model", peak_tflops_assumed=312.0)
    assert metric_at(model, "mfu", 1.0) * 312 == pytest.approx(metric_at(model, "tflops_per_gpu", 1.0))
    assert metric_at(model, "hfu", 1.0) == pytest.approx(4 / 3 * metric_at(model, "mfu", 1.0))
    plain = gpt(flops_kind="model", recompute="none", peak_tflops_assumed=312.0)
    assert metric_at(plain, "hfu", 1.0) == metric_at(plain, "mfu", 1.0)


@pytest.mark.parametrize(
    "kind", ["sc21", "sc21-early", "6n", "6n-attention", "attention-full", "model", None, "unknown"]
)
def test_open_shapes_have_no_flop(kind: str | None) -> None:
    assert step_flop(case(flops_kind=kind)) is None
    assert metric_at(case(flops_kind=kind, gpus=None), "tflops_per_gpu", 1.0) is None


TOLERANCE = 0.011
"""Sources print three digits; model sizes are rounded more."""

OFF = {
    # Samples/s are cut to a whole number, often 1.
    ("llm-foundry", "samples_per_s"): 1.0,
    # MFU of the FP8 rows is relative to twice the peak that the file has.
    ("llm-foundry", "mfu"): 1.01,
    ("llm-foundry", "hfu"): 1.01,
    # MFU counts the round size of the model's name: 7 B for 6.74 B, 6 B for 6.24 B.
    ("deepspeed", "mfu"): 0.04,
    ("megatron-deepspeed", "mfu"): 0.04,
    ("megatron-core", "mfu"): 0.025,
    # Tokens/s and TFLOP/s of one table stand for runs of their own.
    ("internevo", "tflops_per_gpu"): 0.035,
    # A hook of its own, whose attention term is known from the figures alone.
    ("xtuner", "tflops_per_gpu"): 0.125,
    # Multi-query attention, which the formula of SC21 leaves out.
    ("megatron-lm", "tflops_per_gpu"): 0.19,
    # One printed figure at odds with its own tokens/s.
    ("megatron-bridge", "tflops_per_gpu"): 0.025,
    ("megatron-deepspeed", "tflops_per_gpu"): 0.04,
    # Fine-tuning: the counter took attention over packed documents.
    ("nemo", "tflops_per_gpu"): 0.16,
    # HFU is of PyTorch's counter, and the 34 B model recomputes part of its layers.
    ("fsdp", "mfu"): 0.08,
    ("fsdp", "hfu"): 0.22,
    ("megatron-lm", "hfu"): 0.012,
}
"""(framework, figure) -> how far steps of some rows are off, and why."""


def test_every_figure_of_a_scored_row_gives_its_step_time() -> None:
    checked: Counter[str] = Counter()
    off: dict[tuple[str, str], float] = {}
    for row in load_cases([published()]):
        if not row.scored:
            continue
        assert row.step_time_s is not None
        for name in MEASURED[1:]:
            step_s = step_s_of(row, name)
            if step_s is None:
                continue
            checked[name] += 1
            error = abs(step_s / row.step_time_s - 1)
            if error > TOLERANCE:
                off[row.framework, name] = max(error, off.get((row.framework, name), 0.0))
    assert {key: error for key, error in off.items() if error > OFF.get(key, TOLERANCE)} == {}
    assert checked["tokens_per_s_per_gpu"] > 700
    assert checked["tflops_per_gpu"] > 500


def test_every_printed_figure_of_a_scored_row_can_be_predicted() -> None:
    rows = [row for row in load_cases([published()]) if row.scored]
    open_figures = {name for row in rows for name in row.printed if metric_at(row, name, 1.0) is None}
    assert open_figures == set()
