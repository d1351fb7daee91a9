"""The layouts of operations that a plan means, against the block prices that the search used: two formulations of
tensor parallelism, one from factors that are sharded throughout, one from every operation's own strategies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from hardware_profiles.load import load_cluster
from planner import models
from planner.capture.families import family_graph
from planner.execution import TORCH_EAGER
from planner.job import Job
from planner.layouts.model import ModelLayouts, analyse_model
from planner.plan import BlockLayout, Candidate
from planner.solvers.block_layout.planned import planned_layouts
from planner.solvers.prices import BlockPrice, price_blocks
from planner.solvers.setting import Setting
from tests.planner.layouts.strategies.models import model as small_model

SEQ_LEN = 4096


@cache
def case(model: str) -> tuple[Setting, ModelLayouts]:
    config = models.preset(model).config
    assert not isinstance(config, models.ResNetConfig | models.EncoderConfig | models.VisionTransformerConfig)
    graph = family_graph(replace(config, num_layers=4), seq_len=SEQ_LEN)
    job = Job(global_batch=64, seq_len=SEQ_LEN)
    return Setting(graph, load_cluster("h100-sxm:8x8"), job, TORCH_EAGER), analyse_model(graph)


def solved(model: str, *, tp: int, sequence_parallel: bool) -> tuple[tuple[BlockLayout, ...], tuple[BlockPrice, ...]]:
    setting, layouts = case(model)
    candidate = Candidate(
        pp=1, dp_replicate=1, dp_shard=64 // tp, tp=tp, sequence_parallel=sequence_parallel, zero_stage=3,
        microbatch_size=2, num_microbatches=1, recompute="none",
    )  # fmt: skip
    return planned_layouts(setting, candidate, layouts.at(tp)), price_blocks(setting, candidate, layouts.at(tp))


def communicated(block: BlockLayout) -> tuple[float, float]:
    """Seconds of activations; what reduces gradients of whole parameters (norms) is priced per step elsewhere."""
    steps = [step for op in block.operations for step in op.redistributions if step.num_bytes > 1e6]
    return sum(step.forward_s for step in steps), sum(step.backward_s for step in steps)


@pytest.mark.parametrize("sequence_parallel", [True, False])
@pytest.mark.parametrize("tp", [2, 8])
@pytest.mark.parametrize("model", ["llama3-8b", "llama3-70b", "gpt3-175b"])
def test_both_formulations_communicate_the_same(model: str, tp: int, sequence_parallel: bool) -> None:
    found, prices = solved(model, tp=tp, sequence_parallel=sequence_parallel)
    layers = next(b for b in found if b.calls > 1)
    price = next(p for b, p in zip(found, prices, strict=True) if b is layers)
    assert communicated(layers) == pytest.approx((price.forward.collectives, price.backward.collectives), rel=1e-9)


@pytest.mark.parametrize("model", ["hf:mixtral", "thirds", "gpt"])
def test_two_devices_divide_each_part_of_a_fused_projection(model: str) -> None:
    """Two parts, gate and up, are no width that two devices could divide."""
    pytest.importorskip("transformers", reason="an optional dependency: pip install 'meshwright[hf]'")
    graph = small_model(model)
    setting = Setting(graph, load_cluster("h100-sxm:1x2"), Job(global_batch=2, seq_len=8))
    candidate = Candidate(
        pp=1, dp_replicate=1, dp_shard=1, tp=2, sequence_parallel=False, zero_stage=0, microbatch_size=2,
        num_microbatches=1, recompute="none",
    )  # fmt: skip
    found = planned_layouts(setting, candidate, analyse_model(graph).at(2))
    assert len(found) == len(graph.blocks)
    read = {text for block in found for op in block.operations for text in op.inputs}
    assert {"hf:mixtral": "S(1/2)", "thirds": "S(1/3)", "gpt": "S(1)"}[model] in read


@pytest.mark.parametrize("model", ["llama3-8b", "mixtral-8x7b", "deepseek-v3"])
def test_forward_computation_is_priced_alike(model: str) -> None:
    found, prices = solved(model, tp=1, sequence_parallel=False)
    for block, price in zip(found, prices, strict=True):
        forward = price.forward.gemm + price.forward.attention + price.forward.memory_bound
        assert sum(op.forward_s for op in block.operations) == pytest.approx(forward, rel=1e-9)


def test_megatrons_layout_operation_by_operation() -> None:
    found, _ = solved("llama3-8b", tp=8, sequence_parallel=True)
    layers = next(b for b in found if b.calls > 1)
    assert layers.modules == ("layers.*",)
    by_module = {(op.module, op.operation): op for op in layers.operations}
    for name in ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3"):
        assert (by_module[name, "mm"].inputs, by_module[name, "mm"].outputs) == (("B", "S(1)"), ("S(1)",))
    for name in ("attention.wo", "feed_forward.w2"):
        assert (by_module[name, "mm"].inputs, by_module[name, "mm"].outputs) == (("S(1)", "S(0)"), ("P",))
    assert by_module["attention", "attention"].inputs == ("S(1)", "S(1)", "S(1)")
    assert by_module["ffn_norm", "rms_norm"].outputs == ("S(1)", "S(1)")
    first, gathered = by_module["attention.wq", "mm"].redistributions, by_module["attention.wk", "mm"].redistributions
    assert [(step.forward, step.backward) for step in first] == [("all_gather", "reduce_scatter")]
    assert gathered == ()


def test_one_device_communicates_nothing() -> None:
    found, _ = solved("mixtral-8x7b", tp=1, sequence_parallel=False)
    assert all(not op.redistributions for block in found for op in block.operations)
    assert {p for block in found for op in block.operations for p in (*op.inputs, *op.outputs)} == {"R"}
