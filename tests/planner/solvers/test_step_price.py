from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from planner.execution import Execution
from planner.plan import Candidate
from planner.solvers.prices import price_blocks
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.stage_terms import stage_seconds
from planner.solvers.step_price import StepPrice, price_step
from tests.planner.solvers.small import Case, costs, setting


def candidate(**changes: Any) -> Candidate:
    plain = {
        "pp": 1, "dp_replicate": 1, "dp_shard": 8, "tp": 1, "sequence_parallel": False, "zero_stage": 3,
        "microbatch_size": 1, "num_microbatches": 2, "recompute": "none",
    }  # fmt: skip
    return Candidate(**{**plain, **changes})


def priced(chosen: Candidate, cuts: tuple[int, ...], execution: Execution | None = None) -> StepPrice:
    case = setting()
    if execution is None:
        return price_step(costs(case, chosen), cuts)
    case = Case(case.graph, case.cluster, case.job, execution)
    prices = price_blocks(case, chosen, case.layouts.at(chosen.tp))
    return price_step(SegmentCosts(case, chosen, prices), cuts)


def whole() -> tuple[int, int]:
    return 0, len(setting().graph.segments)


def halves() -> tuple[int, ...]:
    """Two stages with one repeated block at least each."""
    blocks = [i for i, segment in enumerate(setting().graph.segments) if segment.prefix]
    return 0, blocks[len(blocks) // 2], len(setting().graph.segments)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_without_a_pipeline_it_is_the_searchs_closed_form(zero_stage: int, recompute: str) -> None:
    """``m t + d`` of `planner.solvers.inter_op`, which the search minimises."""
    chosen = candidate(zero_stage=zero_stage, recompute=recompute)
    stage = costs(setting(), chosen)
    end = whole()[1]
    assert priced(chosen, whole()).step_s == pytest.approx(stage.microbatch_s[0, end] + stage.remaining_s[0, end])


@pytest.mark.parametrize("num_microbatches", [2, 4, 8])
def test_two_stages_are_one_f_one_b_by_hand(num_microbatches: int) -> None:
    """Overlapped sends of nothing: the last stage starts after the first's forward and never waits if it is slower."""
    chosen = candidate(pp=2, dp_shard=4, num_microbatches=num_microbatches, zero_stage=1)
    stage = costs(setting(), chosen)
    cuts = halves()
    first, last = [(float(stage.forward_s[a:b].sum()), float(stage.backward_s[a:b].sum())) for a, b in pairwise(cuts)]
    sends = float(stage.send_s[cuts[1]])
    steady = num_microbatches * max(sum(first), sum(last))
    found = priced(chosen, cuts)
    assert found.step_s > steady
    # Nothing can take longer than all stages one after the other, sends and once-per-step work included.
    once = sum(stage_seconds(stage, a, b).step_s for a, b in pairwise(cuts))
    assert found.step_s <= num_microbatches * (sum(first) + sum(last) + 2 * sends) + once


def test_terms_and_classes_both_add_up_to_the_step() -> None:
    for chosen, cuts in ((candidate(), whole()), (candidate(pp=2, dp_shard=2, tp=2, num_microbatches=4), halves())):
        found = priced(chosen, cuts)
        assert sum(term.seconds for term in found.breakdown.terms) == found.step_s
        assert sum(found.classes.values()) == pytest.approx(found.step_s, rel=1e-6)


@pytest.mark.parametrize("kind", ["gemm", "attention", "memory_bound", "tp", "dp", "optimizer"])
def test_a_factor_stretches_its_class_and_no_other(kind: str) -> None:
    """Without overlap nothing is hidden, so the step grows by exactly what the class has."""
    chosen = candidate(dp_shard=4, tp=2, zero_stage=1)
    blocking = Execution(overlap_gradients=False, overlap_gather=False)
    plain = priced(chosen, whole(), blocking)
    slower = priced(chosen, whole(), replace(blocking, time_factor=((kind, 1.5),)))
    assert plain.classes[kind] > 0
    assert slower.step_s - plain.step_s == pytest.approx(0.5 * plain.classes[kind], rel=1e-6)


def test_a_slow_host_sets_the_pace() -> None:
    """However fast the device is, a pass takes as long as the host needs for its calls: forward, and half of it
    backward."""
    execution = Execution(host_call_s=1.0, overlap_gradients=False, overlap_gather=False)
    graph = setting().graph
    calls = sum(1.0 if op.phase == "forward" else 0.5 for s in graph.segments for op in graph.blocks[s.block].ops)
    found = priced(candidate(num_microbatches=1), whole(), execution)
    assert found.classes["host"] == pytest.approx(calls)
    assert found.classes["gemm"] == 0.0


def test_a_host_that_is_the_device_hides_nothing() -> None:
    """On processors that run the program themselves every call counts, however long the kernels are."""
    case = setting()
    library = replace(
        case.cluster.library, name="gloo", algorithms=frozenset({"ring"}), protocols=frozenset({"hockney"})
    )
    own = replace(case.cluster, library=library)
    calls = sum(
        1.0 if op.phase == "forward" else 0.5 for s in case.graph.segments for op in case.graph.blocks[s.block].ops
    )
    prices = {}
    for cluster in (case.cluster, own):
        slow = Case(case.graph, cluster, case.job, Execution(host_call_s=1e-9))
        chosen = candidate(num_microbatches=1)
        prices[cluster.library.name] = price_step(
            SegmentCosts(slow, chosen, price_blocks(slow, chosen, case.layouts.at(1))), whole()
        )
    assert prices["gloo"].breakdown.seconds("compute.host") == pytest.approx(calls * 1e-9)
    assert prices[case.cluster.library.name].breakdown.seconds("compute.host") == 0.0


def test_the_peak_is_that_of_the_last_microbatch_in_flight() -> None:
    """More microbatches in flight on the first stage than on the last; as many as there are at most."""
    few, many = (priced(candidate(pp=2, dp_shard=4, num_microbatches=m), halves()) for m in (1, 8))
    assert many.memory[0].parts["activations"] > few.memory[0].parts["activations"]
    assert many.memory[1].parts["activations"] == few.memory[1].parts["activations"]


def test_recomputing_some_blocks_lies_between_none_and_all() -> None:
    none, some, every = (
        priced(candidate(recompute=policy, recomputed_blocks=blocks), whole())
        for policy, blocks in (("none", None), ("full", 1), ("full", None))
    )
    assert none.step_s < some.step_s < every.step_s
    assert none.peak_bytes > some.peak_bytes > every.peak_bytes


def test_clipping_reads_the_owned_gradients_once() -> None:
    """fp32 gradients of the device's share at the streaming rate, and nothing else changes."""
    chosen, device = candidate(zero_stage=1), setting().cluster.device
    plain, clipped = (priced(chosen, whole(), Execution(clip_gradients=clip)) for clip in (False, True))
    owned = float(costs(setting(), chosen).owned_numel.sum())
    expected = 4 * owned / (device.memory_bytes_per_s * device.efficiency.pointwise)
    assert clipped.breakdown.seconds("optimizer.clip") == pytest.approx(expected)
    assert clipped.step_s - plain.step_s == pytest.approx(expected)
