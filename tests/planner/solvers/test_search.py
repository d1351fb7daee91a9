from __future__ import annotations

from collections import Counter
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from costmodels.memory import PRECISIONS
from planner.job import Constraints
from planner.plan import Candidate
from planner.solvers.inter_op import least_peak, split_stages
from planner.solvers.search import SearchResult, divisors, meshes, model_flop, predict, search
from tests.planner.solvers.small import Case, candidates, costs, setting

Mesh = tuple[int, int, int, int]


def mesh(c: Candidate) -> Mesh:
    return c.pp, c.dp_replicate, c.dp_shard, c.tp


def brute_force(case: Case, constraints: Constraints) -> dict[Mesh, tuple[float, tuple[Any, ...]]]:
    """Best (step, candidate) of every mesh: each candidate priced, none bounded."""
    capacity = constraints.memory_fraction * case.cluster.device.memory_bytes
    best: dict[Mesh, tuple[float, tuple[Any, ...]]] = {}
    for c in candidates(case, constraints):
        found = costs(case, c)
        split = split_stages(found.microbatch_s, found.remaining_s, [peak <= capacity for peak in found.peak_bytes])
        if split is not None:
            best[mesh(c)] = min(best.get(mesh(c), (float("inf"), ())), (split.step_s, astuple(c)))
    return best


def squeezed(case: Case, quantile: float) -> float:
    """A memory fraction into which only part of the candidates fit."""
    peaks = [least_peak(costs(case, c).peak_bytes) for c in candidates(case)]
    return float(np.quantile(peaks, quantile)) / case.cluster.device.memory_bytes


def check(case: Case, constraints: Constraints, top: int) -> SearchResult:
    expected = sorted(brute_force(case, constraints).values())
    result = search(case, constraints, top=top)
    found = [(f.split.step_s, astuple(f.costs.candidate)) for f in result.best]
    assert [step for step, _ in found] == pytest.approx([step for step, _ in expected[:top]], rel=1e-12)
    assert [c for _, c in found] == [c for _, c in expected[:top]]
    report = result.report
    assert report.candidates == report.priced + sum(report.rejected.values())
    if expected:
        assert report.bound_s == expected[0][0]
        assert report.gap(found[0][0]) == 0.0
        assert result.tightest is None
    return result


@pytest.mark.parametrize("family", ["gqa", "gpt", "mixtral"])
@pytest.mark.parametrize("shape", ["1x1", "2x4", "4x4"])
@pytest.mark.parametrize("top", [1, 5])
def test_the_best_of_every_mesh_is_that_of_pricing_everything(family: str, shape: str, top: int) -> None:
    check(setting(family, shape=shape), Constraints(), top)


@pytest.mark.parametrize("family", ["gqa", "resnet"])
@pytest.mark.parametrize("quantile", [0.02, 0.2, 0.6])
def test_under_a_tight_memory_limit_too(family: str, quantile: float) -> None:
    case = setting(family)
    result = check(case, Constraints(memory_fraction=squeezed(case, quantile)), 3)
    assert result.report.rejected["memory"] > 0


@pytest.mark.parametrize(
    "job",
    [{"global_batch": 1}, {"global_batch": 24}, {"seq_len": 7}, {"optimizer": "sgd", "precision": "fp32"}],
    ids=str,
)
def test_for_other_jobs_too(job: dict[str, Any]) -> None:
    check(setting("gqa", **job), Constraints(), 4)


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(tp=2),
        Constraints(pp=2, dp_shard=2),
        Constraints(max_tp=1, max_pp=2),
        Constraints(dp_replicate=8),
        Constraints(recompute="full", microbatch_size=2),
        Constraints(pp=1, dp_replicate=1, dp_shard=4, tp=2),
    ],
    ids=lambda c: ",".join(f"{k}={v}" for k, v in vars(c).items() if v is not None and k != "memory_fraction"),
)
def test_pins_and_limits_are_kept(constraints: Constraints) -> None:
    result = check(setting("gqa"), constraints, 50)
    assert result.best
    for found in result.best:
        c = found.costs.candidate
        for axis in ("pp", "dp_replicate", "dp_shard", "tp", "microbatch_size", "recompute"):
            assert getattr(constraints, axis) in (None, getattr(c, axis))
        assert c.tp <= (constraints.max_tp or c.tp)
        assert c.pp <= (constraints.max_pp or c.pp)


def test_every_candidate_is_legal() -> None:
    """What torch's own schedule asks for (no fewer microbatches than stages), the mesh, the batch."""
    case = setting("gqa", shape="4x4")
    for found in search(case, Constraints(), top=100).best:
        c = found.costs.candidate
        assert c.num_devices == 16
        assert c.num_microbatches * c.microbatch_size * c.data_parallel == case.job.global_batch
        assert c.num_microbatches >= c.pp
        assert (c.zero_stage == 0) == (c.dp_shard == 1)
        assert c.sequence_parallel == (c.tp > 1)
        assert len(found.split.cuts) == c.pp + 1


def test_rejected_candidates_keep_their_reason() -> None:
    rejected = Counter(search(setting("gpt", global_batch=4), Constraints(max_pp=4), top=100).report.rejected)
    assert set(rejected) == {
        "batch not divisible", "constraint", "fewer microbatches than stages", "tp does not divide",
    }  # fmt: skip
    assert rejected["tp does not divide"] == 3  # pp 1, tp 8, three recompute policies: 4 heads
    assert "more stages than blocks" in search(setting("gqa"), Constraints(), top=100).report.rejected
    assert "bound" in search(setting("gqa"), Constraints(), top=1).report.rejected


def test_a_search_ends_the_same_way_twice() -> None:
    case = setting("mixtral")
    first, second = (search(case, Constraints(), top=5) for _ in range(2))
    assert first.report == second.report
    assert [f.order for f in first.best] == [f.order for f in second.best]


def test_nothing_fits_names_the_tightest_candidate_and_what_it_needs() -> None:
    case = setting("gqa")
    result = search(case, Constraints(memory_fraction=1e-9), top=3)
    assert not result.best
    assert result.tightest is not None
    found, peak = result.tightest
    assert peak == least_peak(found.peak_bytes)
    every = [least_peak(costs(case, c).peak_bytes) for c in candidates(case)]
    assert min(every) <= peak <= np.quantile(every, 0.1)
    assert search(case, Constraints(memory_fraction=(peak + 1) / case.cluster.device.memory_bytes), top=1).best


@pytest.mark.parametrize("family", ["gqa", "gpt", "resnet"])
def test_the_prediction_is_the_price_that_was_searched_for(family: str) -> None:
    case = setting(family)
    for found in search(case, Constraints(), top=50).best:
        made, c = predict(found), found.costs.candidate
        assert made.step_s == pytest.approx(found.split.step_s)
        assert made.breakdown.low_s <= made.step_s <= made.breakdown.high_s * (1 + 1e-12)
        assert len(made.memory) == c.pp
        assert made.peak_bytes <= case.cluster.device.memory_bytes
        seconds_per_token = made.step_s / (case.job.global_batch * case.job.seq_len)
        assert made.tokens_per_s * seconds_per_token == pytest.approx(1.0)
        flop = model_flop(case.graph, seq_len=case.job.seq_len) * case.job.global_batch
        peak = case.cluster.device.peak(PRECISIONS["bf16"].compute_dtype) * 8
        assert made.mfu == pytest.approx(flop / made.step_s / peak)
        assert 0 < made.mfu < 1


@pytest.mark.parametrize("n", [1, 2, 12, 16, 36, 97])
def test_meshes_are_all_factorisations_and_divisors_all_divisors(n: int) -> None:
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]
    sizes = divisors(n)
    every = {(a, b, c, d) for a in sizes for b in sizes for c in sizes for d in sizes if a * b * c * d == n}
    found = list(meshes(n))
    assert len(found) == len(every)
    assert set(found) == every
