from __future__ import annotations

from itertools import pairwise
from math import isclose, prod

import numpy as np
import pytest

from costmodels import communication
from costmodels.pipeline import in_flight
from hardware_profiles.topology import boundary
from planner.plan import Candidate
from planner.solvers.inter_op import least_peak, split_stages
from planner.solvers.stage_costs import StageCosts
from planner.solvers.stage_terms import stage_seconds
from tests.planner.solvers.small import candidates, costs, setting

FAMILIES = ["gqa", "gpt", "mixtral", "resnet"]


def some(family: str, count: int = 24) -> list[StageCosts]:
    """Candidates spread over the whole space of a small job."""
    case = setting(family)
    found = list(candidates(case))
    return [costs(case, c) for c in found[:: max(1, len(found) // count)]]


def ranges(num_segments: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(num_segments) for b in range(a + 1, num_segments + 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_named_seconds_are_the_entries_of_the_matrices(family: str) -> None:
    for found in some(family):
        m = found.candidate.num_microbatches
        for a, b in ranges(len(found.setting.block_of)):
            stage = stage_seconds(found, a, b)
            assert isclose(stage.microbatch_s, found.microbatch_s[a, b], rel_tol=1e-9)
            assert isclose(stage.step_s, found.once_s[a, b], rel_tol=1e-9, abs_tol=1e-15)
            weight = (m - 1) * stage.microbatch_s + stage.step_s
            assert isclose(weight, found.remaining_s[a, b], rel_tol=1e-9, abs_tol=1e-15)
            for seconds in (*stage.per_microbatch.values(), *stage.per_step.values()):
                assert 0 <= seconds.low <= seconds.expected * (1 + 1e-12)
                assert seconds.expected <= seconds.high * (1 + 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_named_bytes_are_the_entries_of_the_matrices(family: str) -> None:
    for found in some(family):
        c = found.candidate
        for position in range(c.pp):
            for a, b in ranges(len(found.setting.block_of)):
                total = found.stage_memory(position, a, b).total_bytes
                assert total == pytest.approx(found.peak_bytes[position][a, b], abs=16)


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_stages_are_never_chosen(family: str) -> None:
    for found in some(family, 6):
        empty = np.arange(found.microbatch_s.shape[1])[None, :] <= np.arange(found.microbatch_s.shape[0])[:, None]
        assert np.isinf(found.microbatch_s[empty]).all()
        assert np.isinf(found.remaining_s[empty]).all()
        assert np.isfinite(found.remaining_s[~empty]).all()
        assert not np.isnan(found.peak_bytes[0]).any()


@pytest.mark.parametrize("precision", ["bf16", "bf16-pure", "fp32"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_peaks_are_numbers_for_every_recipe(precision: str, optimizer: str) -> None:
    """Recipes without a compute copy or without optimizer states multiply by zero."""
    case = setting("gqa", precision=precision, optimizer=optimizer)
    for c in list(candidates(case))[::40]:
        for peak in costs(case, c).peak_bytes:
            assert not np.isnan(peak).any()
            assert np.isinf(np.tril(peak)[np.tril(np.ones_like(peak)) > 0]).all()
            assert np.isfinite(peak[np.triu(np.ones_like(peak), 1) > 0]).all()
        assert np.isfinite(least_peak(costs(case, c).peak_bytes))


def test_a_stage_is_the_direct_sum_over_its_segments() -> None:
    for found in some("gqa"):
        c, case = found.candidate, found.setting
        prices = [found.prices[block] for block in case.block_of]
        crossing = 2 * c.microbatch_size * 64 * 32 / (c.tp if c.sequence_parallel else 1)
        link = boundary(case.cluster, stride=c.num_devices // c.pp) if c.pp > 1 else None
        for a, b in ranges(len(prices)):
            borders = (a > 0) + (b < len(prices))
            saved = sum(p.saved_bytes[c.recompute] for p in prices[a:b]) + (crossing if b < len(prices) else 0)
            assert found.activation_bytes[a, b] == pytest.approx(saved)
            again = [p.again[c.recompute] for p in prices[a:b]]
            compute = sum(p.forward.compute + p.backward.compute for p in prices[a:b]) + sum(p.compute for p in again)
            over_tp = sum(p.forward.collectives + p.backward.collectives for p in prices[a:b])
            over_tp += sum(p.collectives for p in again)
            sends = borders * communication.send_recv_s(link, crossing) if link else 0.0
            named = stage_seconds(found, a, b).per_microbatch
            exposed = sum(seconds.expected for name, seconds in named.items() if name.startswith("dp."))
            assert found.microbatch_s[a, b] == pytest.approx(compute + over_tp + sends + exposed)


@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_are_bounds(family: str) -> None:
    """Over every candidate: no cut is faster than the bound on seconds, none leaner than the bound on bytes."""
    case = setting(family)
    tightness = []
    for c in candidates(case):
        found = costs(case, c)
        anything = [np.isfinite(peak) for peak in found.peak_bytes]
        split = split_stages(found.microbatch_s, found.remaining_s, anything)
        assert split is not None
        assert found.lower_bound_s <= split.step_s * (1 + 1e-12)
        assert found.least_peak_bytes <= least_peak(found.peak_bytes)
        tightness.append(found.lower_bound_s / split.step_s)
    assert max(tightness) > 0.9


def test_a_pipeline_holds_fewer_microbatches_towards_its_end() -> None:
    case = setting("gqa")
    c = next(c for c in candidates(case) if c.pp == 4 and c.num_microbatches >= 4)
    found = costs(case, c)
    parts = [found.stage_memory(i, 1, 2).parts["activations"] for i in range(4)]
    assert parts == [in_flight(i, 4, c.num_microbatches) * parts[-1] for i in range(4)]


def held_parameters(found: StageCosts, a: int, b: int) -> float:
    """Elements of the distinct parameters of a stage, straight from the graph."""
    graph = found.setting.graph
    names: dict[str, int] = {}
    for segment, block in zip(graph.segments[a:b], found.setting.block_of[a:b], strict=True):
        for relative, shape in found.prices[block].param_shapes.items():
            names[graph.canonical(segment, relative)] = prod(shape)
    return sum(names.values())


@pytest.mark.parametrize("family", ["gqa", "gpt", "bert"])
@pytest.mark.parametrize("vocab_size", [40, 41], ids=["sharded", "whole"])
def test_parameters_of_a_stage_are_counted_once_each_also_tied_ones(family: str, vocab_size: int) -> None:
    """GPT-2 and BERT share the embedding with the head; with 41 tokens it is whole on every tp rank."""
    case = setting(family, vocab_size=vocab_size)
    for c in candidates(case):
        if c.zero_stage == 0 and c.recompute == "none" and c.microbatch_size == 1:
            found = costs(case, c)
            parts = found.memory_parts
            for a, b in ranges(len(case.block_of)):
                held = held_parameters(found, a, b)
                assert found.held_numel(range(a, b)) == (held, held)
                assert parts["parameters"][a, b] == pytest.approx(4 * held)
                assert parts["gradients"][a, b] == pytest.approx(4 * held)
                assert parts["optimizer"][a, b] == pytest.approx(8 * held)


def test_a_whole_model_on_one_device_has_all_its_parameters() -> None:
    for family in ("gqa", "gpt", "mixtral", "resnet"):
        case = setting(family, shape="1x1")
        c = next(iter(candidates(case)))
        whole = (0, len(case.block_of))
        assert costs(case, c).memory_parts["optimizer"][whole] == 8 * case.graph.num_parameters


def test_tied_gradients_cross_the_pipeline_only_where_there_is_one() -> None:
    case = setting("gpt", vocab_size=41)
    by_pp: dict[tuple[int, int], Candidate] = {(c.pp, c.tp): c for c in candidates(case)}
    assert costs(case, by_pp[1, 1]).tied_s == 0
    expected = communication.send_recv_s(boundary(case.cluster, stride=4), 4 * 41 * 32)
    assert costs(case, by_pp[2, 1]).tied_s == pytest.approx(expected)
    assert costs(case, by_pp[2, 2]).tied_s == pytest.approx(expected)
    assert costs(setting("gqa"), by_pp[2, 1]).tied_s == 0


def test_without_tensor_parallelism_ranks_reduce_nothing_over_it() -> None:
    for found in some("gqa"):
        names = stage_seconds(found, 0, 1)
        seconds = names.per_step["tp.gradient_reduce"].expected
        assert (seconds > 0) == found.candidate.sequence_parallel or found.prices[0].replicated_numel == 0
        if found.candidate.tp == 1:
            assert names.per_microbatch["tp.collectives"].high == 0


def test_more_zero_never_takes_more_memory_on_any_stage() -> None:
    case = setting("gqa")
    by_key: dict[tuple[object, ...], dict[int, Candidate]] = {}
    for c in candidates(case):
        key = (c.pp, c.dp_replicate, c.dp_shard, c.tp, c.microbatch_size, c.recompute)
        by_key.setdefault(key, {})[c.zero_stage] = c
    for group_ in by_key.values():
        if set(group_) == {1, 2, 3}:
            peaks = [costs(case, group_[stage]) for stage in (1, 2, 3)]
            state = [sum(found.memory_parts[p] for p in ("parameters", "gradients", "optimizer")) for found in peaks]
            for more, less in pairwise(state):
                assert (np.triu(less, 1) <= np.triu(more, 1)).all()


def test_recomputation_trades_seconds_for_bytes() -> None:
    case = setting("gqa")
    by_key: dict[tuple[object, ...], dict[str, StageCosts]] = {}
    for c in candidates(case):
        key = (c.pp, c.dp_replicate, c.dp_shard, c.tp, c.microbatch_size, c.zero_stage)
        by_key.setdefault(key, {})[c.recompute] = costs(case, c)
    for policies in list(by_key.values())[::7]:
        none, selective, full = (policies[name] for name in ("none", "selective", "full"))
        whole = (0, len(case.block_of))
        assert none.microbatch_s[whole] < selective.microbatch_s[whole] < full.microbatch_s[whole]
        assert none.activation_bytes[whole] >= selective.activation_bytes[whole] > full.activation_bytes[whole]
