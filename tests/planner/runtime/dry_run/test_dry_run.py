"""Plans executed without devices, end to end: what they communicate is what they predict, to the byte."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from hardware_profiles.load import load_cluster
from planner.capture.sources import ModelSource, capture_model
from planner.errors import UsageError
from planner.execution import TORCH_EAGER
from planner.fixed_plan import fixed_plan
from planner.graph import ModelGraph
from planner.job import Job
from planner.models import DenseDecoderConfig, build_from_config
from planner.plan import Candidate, Plan, PlanInputs
from planner.runtime.dry_run import check_ranks, dry_run
from planner.solvers.setting import Setting

SEQ_LEN = 64
CONFIG = DenseDecoderConfig(
    vocab_size=256, max_seq_len=SEQ_LEN, dim=32, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, hidden_dim=64,
    activation="swiglu", norm="rms", norm_eps=1e-5, positions="rotary", bias=False, fused_qkv=False,
    tied_embedding=False,
)  # fmt: skip
CANDIDATE = Candidate(
    pp=1, dp_replicate=1, dp_shard=1, tp=1, sequence_parallel=False, zero_stage=0, microbatch_size=1,
    num_microbatches=2, recompute="none",
)  # fmt: skip
PLANS = {
    "zero 3": replace(CANDIDATE, dp_replicate=2, dp_shard=4, zero_stage=3, num_microbatches=9),
    "zero 1, tp with sequence": replace(CANDIDATE, dp_shard=4, zero_stage=1, tp=2, sequence_parallel=True),
    "recomputed": replace(CANDIDATE, dp_shard=4, zero_stage=2, tp=2, sequence_parallel=True, recompute="full"),
    "1f1b": replace(CANDIDATE, pp=2, dp_shard=2, zero_stage=1, tp=2, sequence_parallel=True, num_microbatches=12),
    "zb-v": replace(CANDIDATE, pp=2, dp_shard=2, zero_stage=1, num_chunks=2, schedule="zb-v", num_microbatches=10),
    "ring": replace(CANDIDATE, cp=2, dp_shard=2, zero_stage=3, context="ring"),
}


@cache
def small() -> tuple[ModelSource, ModelGraph]:
    with torch.device("meta"):
        module, inputs = build_from_config(CONFIG)
    module = module.to(torch.bfloat16)
    graph, _, _ = capture_model(module, seq_len=SEQ_LEN, compute_dtype="bfloat16", example_inputs=inputs)
    return ModelSource("small", module, inputs, SEQ_LEN), graph


@pytest.fixture
def source() -> ModelSource:
    return small()[0]


def made(candidate: Candidate) -> Plan:
    c = candidate
    samples = c.data_parallel * c.microbatch_size * c.num_microbatches
    job = Job(global_batch=samples, seq_len=SEQ_LEN)
    hardware = f"h100-sxm:1x{c.num_devices}"
    inputs = PlanInputs(model="small", hardware=hardware, num_devices=c.num_devices, job=job)
    return fixed_plan(Setting(small()[1], load_cluster(hardware), job, TORCH_EAGER), c, inputs)


@pytest.mark.parametrize("name", PLANS)
def test_collectives_are_as_predicted(source: ModelSource, name: str) -> None:
    found = dry_run(made(PLANS[name]), source.module, example_inputs=source.inputs)
    assert all(c.difference == 0 for rank in found.ranks for c in rank.collectives)
    axes = {c.axis for c in found.ranks[0].collectives}
    used = {axis for axis in ("pp", "dp_replicate", "dp_shard", "tp", "cp") if getattr(PLANS[name], axis) > 1}
    assert axes == used | {"world"}
    assert sorted(r for rank in found.ranks for r in rank.represents) == list(range(found.world_size))
    for rank in found.ranks:
        same = ("parameters", "optimizer")
        assert {k: rank.memory[k] for k in same} == pytest.approx({k: rank.predicted_memory[k] for k in same}, rel=0.01)


def test_one_rank_and_ranks_that_are_not_there(source: ModelSource) -> None:
    plan = made(PLANS["1f1b"])
    before = [(name, p.shape, p.device) for name, p in source.module.named_parameters()]
    found = dry_run(plan, source.module, example_inputs=source.inputs, rank=6)
    assert [(name, p.shape, p.device) for name, p in source.module.named_parameters()] == before
    [only] = found.ranks
    assert only.rank == 6 and only.represents == (4, 5, 6, 7)
    with pytest.raises(UsageError, match="ranks are 0 to 7"):
        dry_run(plan, source.module, example_inputs=source.inputs, rank=8)


@pytest.mark.parametrize(
    "candidate",
    [
        replace(CANDIDATE, pp=2, tp=2, sequence_parallel=True, num_microbatches=3),
        replace(CANDIDATE, cp=2, dp_shard=2, zero_stage=3, context="ring"),
    ],
    ids=["1f1b", "ring"],
)
def test_all_ranks_communicate_alike(source: ModelSource, candidate: Candidate) -> None:
    assert check_ranks(made(candidate), source.module, example_inputs=source.inputs) == []
