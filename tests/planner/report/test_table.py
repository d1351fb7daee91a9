from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from costmodels.units import GIB
from planner.plan import Alternative, PlanResult, StageMemory
from planner.report import table
from tests import factories


def crowded() -> PlanResult:
    """A result with more of everything than a screen holds."""
    result = factories.result()
    long = replace(
        factories.CANDIDATE, pp=16, dp_replicate=16, dp_shard=64, tp=16, microbatch_size=16, num_microbatches=1024
    )
    prices = factories.breakdown(**{f"group{i}__with_quite_a_long_name": 1.0 + i for i in range(20)})
    predicted = replace(
        factories.prediction(prices, 16),
        memory=tuple(StageMemory(parts={f"part_{i}": (i + 1) * GIB for i in range(12)}) for _ in range(16)),
    )
    plan = replace(
        result.plan,
        inputs=replace(result.plan.inputs, model="hf:" + "a/very/long/path/" * 10 + "config.json"),
        candidate=long,
        predicted=predicted,
        search=replace(result.plan.search, rejected={f"reason_{i}": 10**i for i in range(12)}, bound_s=1.0),
    )
    return replace(result, plan=plan, alternatives=(Alternative(candidate=long, predicted=predicted),) * 20)


@pytest.mark.parametrize("result", [factories.result(), crowded()], ids=["small", "crowded"])
@pytest.mark.parametrize("saved", [None, Path("/a/very/long/path" * 10)])
def test_a_plan_fits_the_screen(result: PlanResult, saved: Path | None) -> None:
    lines = table.render(result, saved=saved).splitlines()
    assert len(lines) <= table.MAX_LINES == 30
    assert max(map(len, lines)) <= table.WIDTH == 100
    assert "".join(lines).isascii()


def test_what_a_plan_says() -> None:
    text = table.render(factories.result())
    lines = text.splitlines()
    assert lines[0] == "llama3-70b: 70.6 B parameters, 128 x 8,192 tokens per step, bf16, adamw"
    assert lines[1] == "h100-sxm:8x8: 64 devices of 80.0 GiB, figures measured or from datasheets"
    assert lines[4] == "pp4 dp4(zero3) tp4+sp mb1 x32 selective 12.0 s     1,365 45.1%  60.0/80 best"
    assert lines[5].endswith("+750 ms tp.collectives")
    assert lines[6].endswith("+2.50 s dp.gradients")
    assert "step 12.0 s (overlap all 10.8 s, none 13.2 s)" in text
    assert "compute.gemm       9.00 s  75%" in text
    assert "peak 60.0 GiB of 80.0 GiB (stage 1 of 4)" in text
    assert "optimizer    30.0 GiB  50%" in text
    assert "search    1,200 candidates, 200 priced; rejected: 700 memory, 300 bound" in text
    assert "proof     no candidate that fits is faster" in text
    assert "warnings  1, " in text
    assert "-o plan.json saves this one" in text


def test_an_open_gap_and_a_saved_plan_are_said() -> None:
    result = factories.result()
    search = replace(result.plan.search, bound_s=10.0)
    text = table.render(replace(result, plan=replace(result.plan, search=search, warnings=())), saved=Path("a.json"))
    assert "at most 20.0% slower than the fastest candidate that fits" in text
    assert "saved   a.json" in text
    assert "-o plan.json" not in text
    assert "warnings" not in text


def test_what_does_not_fit_is_added_up() -> None:
    text = table.render(crowded())
    plan_line = text.splitlines()[4]
    assert plan_line.startswith("pp16 dp16x64(zero3) tp16+sp mb16 x1024 selective 210 s        78 45.1%  78.0/80 best")
    assert "13 more with --json" in text
    assert "13 smaller" in text
    assert "other" in text


def test_a_model_without_sequence_counts_samples() -> None:
    result = factories.result()
    job = replace(result.plan.inputs.job, seq_len=1)
    text = table.render(replace(result, plan=replace(result.plan, inputs=replace(result.plan.inputs, job=job))))
    assert "128 samples per step" in text
    assert "samples/s/dev" in text


def test_color_changes_nothing_but_the_style() -> None:
    assert "\x1b[1m" in table.render(factories.result(), color=True)
    assert "\x1b" not in table.render(factories.result())


@pytest.mark.parametrize(
    ("dp_replicate", "dp_shard", "zero_stage", "words"),
    [(1, 1, 0, "dp1"), (4, 1, 0, "dp4"), (1, 4, 2, "dp4(zero2)"), (2, 8, 3, "dp2x8(zero3)")],
)
def test_data_parallel_words(dp_replicate: int, dp_shard: int, zero_stage: int, words: str) -> None:
    candidate = replace(factories.CANDIDATE, dp_replicate=dp_replicate, dp_shard=dp_shard, zero_stage=zero_stage)
    assert table.layout_words(candidate) == f"pp4 {words} tp4+sp mb1 x32"


def test_why_slower_sums_terms_of_one_group_and_sees_new_ones() -> None:
    best = factories.breakdown(tp__collectives__forward=1.0, tp__collectives__backward=1.0, pp__bubble=2.0)
    split = factories.breakdown(tp__collectives__forward=1.3, tp__collectives__backward=1.3, pp__bubble=2.5)
    assert table.why_slower(best, split) == "+600 ms tp.collectives"
    assert table.why_slower(best, factories.breakdown(pp__bubble=2.1, dp__gradients=9.0)) == "+9.00 s dp.gradients"
    assert table.why_slower(best, best) == "as fast"
