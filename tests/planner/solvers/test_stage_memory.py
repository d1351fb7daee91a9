"""Bytes of a pipeline rank, counted by hand on a small GPT."""

from __future__ import annotations

from itertools import pairwise

import pytest

from costmodels.memory import Recipe
from hardware_profiles.load import load_cluster
from planner.capture.families import family_graph
from planner.execution import Execution
from planner.job import Job
from planner.layouts.model import analyse_model
from planner.models import DenseDecoderConfig
from planner.plan import Candidate
from planner.solvers.prices import price_blocks
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.setting import Setting
from planner.solvers.stage_memory import StageBytes
from planner.solvers.step_price import price_step

S, H, V, L = 128, 256, 1024, 4
LAYER = 12 * H * H + 13 * H
MODEL = L * LAYER + V * H + S * H + 2 * H
LOSSES = (4, 6, 10)


def costs(
    recipe: Recipe | None = None, *, precision: str = "bf16", recompute: str = "none", offload: bool = False,
    pp: int = 1, dp_shard: int = 1, zero_stage: int = 0,
) -> SegmentCosts:  # fmt: skip
    config = DenseDecoderConfig(
        vocab_size=V, max_seq_len=S, dim=H, num_layers=L, num_heads=4, num_kv_heads=4, head_dim=H // 4,
        hidden_dim=4 * H, activation="gelu", norm="layer", norm_eps=1e-5, positions="learned", bias=True,
        fused_qkv=True, tied_embedding=True,
    )  # fmt: skip
    graph, execution = family_graph(config), Execution(recipe=recipe or Recipe(), offload_activations=offload)
    candidate = Candidate(
        pp=pp, dp_replicate=1, dp_shard=dp_shard, tp=1, sequence_parallel=False, zero_stage=zero_stage,
        microbatch_size=1, num_microbatches=4, recompute=recompute, schedule="1f1b", num_chunks=1,
    )  # fmt: skip
    cluster = load_cluster("h100-sxm:1x8")
    batch = candidate.num_microbatches * candidate.dp_shard * candidate.dp_replicate
    setting = Setting(graph, cluster, Job(global_batch=batch, seq_len=S, precision=precision), execution)
    prices = price_blocks(setting, candidate, analyse_model(graph).blocks)
    return SegmentCosts(setting, candidate, prices)


def per_parameter(found: SegmentCosts) -> float:
    state = StageBytes(found).state_bytes([(0, len(found.setting.block_of))])
    return sum(size for name, size in state.items() if name != "buffers") / MODEL


@pytest.mark.parametrize(
    ("precision", "recipe", "expected"),
    [
        ("fp16", Recipe(), 2 + 2 + 12),
        ("bf16", Recipe(), 2 + 4 + 12),
        ("bf16", Recipe(passing_bytes=2), 2 + 4 + 2 + 12),
        ("bf16", Recipe(accumulated_bytes=2), 2 + 2 + 12),
    ],
    ids=["ZeRO's table", "Megatron's main gradients", "BF16_Optimizer", "gradients in bf16"],
)
def test_bytes_per_parameter_by_recipe(precision: str, recipe: Recipe, expected: int) -> None:
    assert per_parameter(costs(recipe, precision=precision)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("shards", [2, 8])
def test_a_distributed_optimizer_shares_out_12_bytes(shards: int) -> None:
    found = costs(dp_shard=shards, zero_stage=1)
    assert per_parameter(found) == pytest.approx(6 + 12 / shards, rel=1e-3)


def test_flat_buffers_are_there_whatever_the_model() -> None:
    with_buffers = StageBytes(costs(Recipe(buffer_bytes=10**9))).state_bytes([(0, 2)])
    without = StageBytes(costs()).state_bytes([(0, 2)])
    assert sum(with_buffers.values()) - sum(without.values()) == 10**9


def test_tied_embeddings_are_held_by_both_stages_that_read_them_and_once_by_one() -> None:
    found = StageBytes(costs())
    end = len(found.costs.setting.block_of)
    first, last, whole = (found.state_bytes([stage])["compute_copy"] for stage in ((0, 2), (2, end), (0, end)))
    assert first + last - whole == 2 * V * H


@pytest.mark.parametrize("logit_bytes", LOSSES)
def test_a_losss_own_way_with_logits_replaces_the_traced_one(logit_bytes: int) -> None:
    """Torch's takes 12 bytes per logit at the head's backward, when all layers' activations are there."""
    found = costs(Recipe(logit_bytes=logit_bytes))
    cuts = (0, len(found.setting.block_of))
    torch, other = (price_step(c, cuts).memory[0].parts["activations"] for c in (costs(), found))
    assert torch - other == (12 - logit_bytes) * S * V


def test_the_peak_is_at_one_moment_not_the_sum_of_maxima() -> None:
    """With full recomputation the head's logits and a layer's remade activations never meet."""
    found = costs(recompute="full", pp=1)
    rank = StageBytes(found)
    kept, _, beside = rank.working_bytes(0, len(found.setting.block_of))
    over_time = [rank.kept_bytes[: i + 1].sum() + work for i, work in enumerate(rank.work_bytes)]
    assert kept + beside == pytest.approx(max(over_time), abs=1)
    assert kept + beside < rank.kept_bytes.sum() + max(rank.work_bytes[:-1]) + rank.work_bytes[-1]


def test_earlier_ranks_hold_more_microbatches() -> None:
    """1F1B: rank i of 4 holds 4 - i; one layer each, so the checkpointed input counts that often."""
    found = costs(pp=4, recompute="full")
    blocks = [i for i, segment in enumerate(found.setting.graph.segments) if segment.prefix]
    cuts = (0, *blocks[1:], len(found.setting.block_of))
    held = [memory.parts["activations"] for memory in price_step(found, cuts).memory]
    kept = [StageBytes(found).working_bytes(a, b)[0] for a, b in pairwise(cuts)]
    assert held[1] - held[2] == pytest.approx(kept[1], rel=0.01), "2 S H of the input and 2 S H of the output"


def test_of_offloaded_activations_two_blocks_are_on_the_device() -> None:
    kept = StageBytes(costs(recompute="full")), StageBytes(costs(recompute="full", offload=True))
    blocks = [i for i, segment in enumerate(kept[0].costs.setting.graph.segments) if segment.prefix]
    assert all(kept[0].kept_bytes[i] == 2 * S * H for i in blocks)
    assert all(kept[1].kept_bytes[i] == 0 for i in blocks)
    assert all(kept[1].work_bytes[i] - kept[0].work_bytes[i] == 2 * 2 * S * H for i in blocks)


def test_what_is_sent_is_freed_where_the_framework_does_so() -> None:
    """One activation per microbatch in flight, in half precision."""
    kept, freed = (
        StageBytes(costs(recipe, pp=2)).working_bytes(0, 3)[0] for recipe in (Recipe(), Recipe(sent_outputs_freed=True))
    )
    assert kept - freed == 2 * S * H
