"""Traffic of one step against sums that are written down by hand from the published algorithms."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import pytest

from planner.fixed_plan import even_cuts
from planner.job import Job
from planner.plan import Candidate, ExpertPlacement, Plan, PlanInputs, Stage
from planner.solvers.setting import Setting
from planner.solvers.traffic import Traffic, segment_traffic, step_traffic
from tests.planner.solvers.small import setting

SEQ_LEN, DIM, LAYERS, VOCAB, KV_DIM = 64, 32, 4, 40, 16
BF16, FP32 = 2, 4
M, SAMPLES = 4, 2
"""Microbatches, and samples of each."""
ACTIVATION = SAMPLES * SEQ_LEN * DIM * BF16

Found = dict[tuple[str, str], tuple[int, int]]


def plan_of(case: Setting, experts: tuple[ExpertPlacement, ...] = (), **degrees: Any) -> Plan:
    named: dict[str, Any] = {
        "pp": 1, "dp_replicate": 1, "dp_shard": 1, "cp": 1, "tp": 1, "sequence_parallel": False, "zero_stage": 3,
        "microbatch_size": SAMPLES, "num_microbatches": M, "recompute": "none",
    }  # fmt: skip
    c = Candidate(**(named | degrees))
    c = c if c.state_shard > 1 else replace(c, zero_stage=0)
    job = Job(global_batch=SAMPLES * M * c.data_parallel, seq_len=SEQ_LEN)
    cuts, segments = even_cuts(case, c), case.graph.segments
    stages = (segments[a:b] for a, b in pairwise(cuts))
    return Plan(
        inputs=PlanInputs(model="m", hardware="h", num_devices=c.num_devices, job=job),
        candidate=c,
        experts=experts,
        stages=tuple(Stage(modules=tuple(m for segment in stage for m in segment.modules)) for stage in stages),
    )


def traffic(family: str = "gqa", **degrees: Any) -> list[Found]:
    case = setting(family, seq_len=SEQ_LEN)
    return [summed(rank) for rank in step_traffic(case, plan_of(case, **degrees))]


def summed(found: tuple[Traffic, ...]) -> Found:
    return {(one.axis, one.kind): (one.count, one.num_bytes) for one in found}


def over(found: Found, axis: str) -> dict[str, tuple[int, int]]:
    return {kind: amount for (name, kind), amount in found.items() if name == axis}


def numel(family: str = "gqa", *, without: str = "?") -> int:
    return sum(prod(p.shape) for p in setting(family).graph.params if without not in p.fqn)


LOSS = {("world", "all_reduce"): (1, FP32)}


def test_one_device_is_silent() -> None:
    assert traffic() == [{}]


def test_fully_sharded() -> None:
    """Zhao et al. 2023: gathered forward and backward, reduced in every microbatch; every layer, embedding and head by
    itself. All sizes divide."""
    units = LAYERS + 2
    (found,) = traffic(dp_shard=4)
    assert found == LOSS | {
        ("dp_shard", "all_gather"): (2 * M * units, 2 * M * numel() * BF16),
        ("dp_shard", "reduce_scatter"): (M * units, M * numel() * FP32),
    }


@pytest.mark.parametrize(("zero_stage", "reductions"), [(1, 1), (2, M)])
def test_parameters_stay_gathered_over_the_step(zero_stage: int, reductions: int) -> None:
    units = LAYERS + 2
    (found,) = traffic(dp_shard=4, zero_stage=zero_stage)
    assert over(found, "dp_shard") == {
        "all_gather": (units, numel() * BF16),
        "reduce_scatter": (reductions * units, reductions * numel() * FP32),
    }


def test_replicas_reduce_their_shares_once() -> None:
    units = LAYERS + 2
    (found,) = traffic(dp_replicate=2, dp_shard=4)
    assert over(found, "dp_replicate") == {"all_reduce": (units, numel() * FP32 // 4)}
    (alone,) = traffic(dp_replicate=8)
    assert alone == LOSS | {("dp_replicate", "all_reduce"): (units, numel() * FP32)}


def test_shards_that_do_not_divide_are_padded() -> None:
    """Over 3 devices: 40 rows of 32 become 42, widths of 32, 16 and 24 that one dim of which divides stay."""
    (found,) = traffic(dp_shard=3)
    padded = 0
    for param in setting("gqa").graph.params:
        even = any(size % 3 == 0 for size in param.shape)
        padded += prod(param.shape) if even else -(-param.shape[0] // 3) * 3 * prod(param.shape[1:])
    assert found["dp_shard", "reduce_scatter"][1] == M * padded * FP32
    assert padded > numel()


def test_sequence_parallel() -> None:
    """Korthikanti et al. 2022, section 4.2.2: a gather before and a reduce-scatter after attention and MLP, the
    adjoints backward; the sharded table's sum is scattered, the head's input gathered. Norms' gradients are summed."""
    rows = SAMPLES * SEQ_LEN
    (found,) = traffic(tp=2, sequence_parallel=True)
    gathers = 4 * LAYERS + 2
    assert over(found, "tp") == {
        "all_gather": (M * gathers, M * gathers * ACTIVATION),
        "reduce_scatter": (M * gathers, M * gathers * ACTIVATION),
        "all_reduce": (M * (2 * LAYERS + 1 + 3), M * ((2 * LAYERS + 1) * DIM * BF16 + 3 * rows * FP32)),
    }


def test_megatrons_tensor_parallelism() -> None:
    """Shoeybi et al. 2019: two all-reduces per layer forward, two backward; one for the table, one for the head."""
    rows = SAMPLES * SEQ_LEN
    (found,) = traffic(tp=2)
    sums = 4 * LAYERS + 2
    assert over(found, "tp") == {"all_reduce": (M * (sums + 3), M * (sums * ACTIVATION + 3 * rows * FP32))}


def test_recomputation_gathers_again_and_sums_no_more_than_it_must() -> None:
    """A layer's last product keeps its operands: what is reduced after it is not reduced again."""
    none = over(traffic(tp=2, sequence_parallel=True)[0], "tp")
    for policy, scatters in (("selective", 0), ("full", 1)):
        (found,) = traffic(tp=2, sequence_parallel=True, recompute=policy)
        more = {kind: count - none[kind][0] for kind, (count, _) in over(found, "tp").items()}
        assert more == {"all_gather": 2 * LAYERS * M, "reduce_scatter": scatters * LAYERS * M, "all_reduce": 0}
    (some,) = traffic(tp=2, sequence_parallel=True, recompute="full", recomputed_blocks=1)
    assert over(some, "tp")["all_gather"][0] == none["all_gather"][0] + 2 * M


def test_keys_and_values_are_gathered() -> None:
    """Llama 3, section 3.3.2."""
    (found,) = traffic(cp=2, context="all_gather")
    kv = SAMPLES * SEQ_LEN * KV_DIM * BF16
    mean = M * 2  # rows that count, and the loss
    assert over(found, "cp") == {
        "all_gather": (M * 2 * LAYERS, M * 2 * LAYERS * kv),
        "reduce_scatter": (M * 2 * LAYERS, M * 2 * LAYERS * kv),
        "all_reduce": (mean, mean * FP32),
    }


@pytest.mark.parametrize("cp", [2, 4])
def test_keys_and_values_go_round(cp: int) -> None:
    """Liu et al. 2023: n - 1 steps forward, again backward, n for their gradients; heads as attention reads them."""
    (found,) = traffic(cp=cp, context="ring")
    kv = 2 * SAMPLES * (SEQ_LEN // cp) * 32 * BF16
    steps = M * LAYERS * (cp - 1 + 2 * cp - 1)
    assert over(found, "cp")["all_to_all"] == (steps, steps * kv)


def test_devices_of_cp_share_states_with_dp() -> None:
    (found,) = traffic(cp=2, dp_shard=2, context="ring")
    assert over(found, "dp_shard") == over(traffic(dp_shard=4)[0], "dp_shard")


def test_dispatch() -> None:
    """How many rows go to each of 4 experts, the rows of both choices, and what came of them back."""
    (found,) = traffic("mixtral", dp_shard=4, ep=2)
    rows = 2 * SAMPLES * SEQ_LEN * DIM * BF16
    assert over(found, "ep") == {"all_to_all": (M * LAYERS * 5, M * LAYERS * (4 * rows + 4 * 8))}
    experts = numel("mixtral") - numel("mixtral", without="experts")
    assert experts > 0
    assert over(found, "expert_shard") == {
        "all_gather": (2 * M * LAYERS, 2 * M * experts // 2 * BF16),
        "reduce_scatter": (M * LAYERS, M * experts // 2 * FP32),
    }
    dense = numel("mixtral", without="experts")
    assert over(found, "dp_shard")["reduce_scatter"] == (M * (LAYERS + 2), M * dense * FP32)


def test_replicas_of_experts_sum_their_gradients() -> None:
    placed = (ExpertPlacement(block="layers.*", ranks=((0, 1), (0,), (1,), (0, 1))),)
    (found,) = traffic("mixtral", dp_shard=4, ep=2, experts=placed)
    experts = numel("mixtral") - numel("mixtral", without="experts")
    assert over(found, "ep")["all_reduce"] == (3 * M * LAYERS, M * experts // 2 * BF16)
    assert over(found, "expert_shard")["reduce_scatter"][1] == M * experts * 3 // 4 * FP32


@pytest.mark.parametrize(("schedule", "chunks", "crossings"), [("1f1b", 1, 1), ("interleaved-1f1b", 2, 3)])
def test_stages_hand_on_activations_and_gradients(schedule: str, chunks: int, crossings: int) -> None:
    first, last = traffic(pp=2, schedule=schedule, num_chunks=chunks)
    both = M * crossings, M * crossings * ACTIVATION
    assert over(first, "pp") == over(last, "pp") == {"send": both, "recv": both}


def test_there_and_back_hands_over_in_place() -> None:
    first, last = traffic(pp=2, schedule="zb-v", num_chunks=2)
    both = 2 * M, 2 * M * ACTIVATION
    assert over(first, "pp") == over(last, "pp") == {"send": both, "recv": both}


def test_every_rank_of_a_longer_pipeline() -> None:
    ranks = traffic(pp=4, dp_shard=2)
    assert [over(found, "pp")["send"][0] for found in ranks] == [M, 2 * M, 2 * M, M]
    assert sum(over(found, "dp_shard")["reduce_scatter"][1] for found in ranks) == M * numel() * FP32


def test_tied_parameters_sum_their_gradients() -> None:
    first, last = traffic("gpt", pp=2, dp_shard=2)
    table = VOCAB * DIM // 2 * FP32
    assert over(first, "pp")["all_reduce"] == over(last, "pp")["all_reduce"] == (1, table)


def test_segments_add_up_to_the_step() -> None:
    case = setting("gqa", seq_len=SEQ_LEN)
    plan = plan_of(case, pp=2, dp_shard=2, tp=2, sequence_parallel=True, recompute="full")
    for whole, parts in zip(step_traffic(case, plan), segment_traffic(case, plan), strict=True):
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for traffic_of in parts.values():
            for (axis, kind), (count, num_bytes) in summed(traffic_of).items():
                before = found.get((axis, kind), (0, 0))
                found[axis, kind] = before[0] + count, before[1] + num_bytes
        assert found == summed(whole)
    assert {"tok_embeddings", "layers.0", ""} <= segment_traffic(case, plan)[0].keys()
