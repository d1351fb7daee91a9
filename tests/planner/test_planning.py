from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from costmodels.schedules import Cost, StageCost, make, simulate
from hardware_profiles.load import load_cluster
from planner import plan_file
from planner.errors import NoPlanError, UsageError
from planner.job import Constraints, Job
from planner.layouts.pins import matches
from planner.plan import PlanResult
from planner.planning import describe, make_plan
from planner.solvers.search import model_flop, search
from planner.solvers.setting import Setting
from tests.planner.layouts.small import capture_once, captured

TOY = "tests/hardware_profiles/toy.toml"

JOBS: dict[str, tuple[str, Constraints | None]] = {
    "gpt2": ("a100-80gb:1x8", None),
    "llama3-8b": ("h100-sxm:1x8", None),
    "mixtral-8x7b": ("h100-sxm:4x8", None),
    "resnet-50": ("mi250x:1x8", None),
    "vit-l-16": ("h200-sxm:1x8", Constraints(tp=2)),
    "bert-large": ("a100-40gb:1x8", Constraints(pp=2)),
    "deepseek-v3": ("h100-sxm:64x8", Constraints(recompute="full", max_pp=32, microbatch_size=1)),
}


@pytest.fixture(autouse=True)
def _trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.capture.sources.capture_model", capture_once)


@pytest.mark.parametrize("model", JOBS)
def test_a_model_is_planned_from_end_to_end(model: str) -> None:
    hardware, constraints = JOBS[model]
    result = make_plan(model, hardware=hardware, constraints=constraints, top=4)
    plan, graph = result.plan, captured(model, None, "bfloat16")[0]
    c, predicted = plan.candidate, plan.predicted

    text = plan_file.to_json(plan)
    assert plan_file.to_json(plan_file.from_json(text, "plan.json")) == text

    assert c.num_devices == plan.inputs.num_devices
    assert plan.inputs.num_parameters == graph.num_parameters
    assert predicted.peak_bytes <= plan.inputs.constraints.memory_fraction * plan.inputs.device_memory_bytes
    assert len(plan.stages) == len(predicted.memory) == c.pp
    assert predicted.breakdown.low_s <= predicted.step_s <= predicted.breakdown.high_s
    assert 0.01 < predicted.mfu < 0.9
    assert plan.search.gap(plan.predicted.step_s) == pytest.approx(0.0, abs=1e-12)
    steps = [predicted.step_s, *(other.predicted.step_s for other in result.alternatives)]
    assert steps == sorted(steps)
    meshes = [(o.pp, o.dp_replicate, o.dp_shard, o.tp) for o in (c, *(a.candidate for a in result.alternatives))]
    assert len(set(meshes)) == len(meshes)

    for param in graph.params:
        assert sum(matches(layout.pattern, param.fqn) for layout in plan.layouts) == 1
        owners = [s for s in plan.stages if any(param.fqn.startswith(f"{m}.") or param.fqn == m for m in s.modules)]
        tied = param.fqn in graph.aliases.values()
        assert len(owners) == 1 or (tied and len(owners) == 2)
    blocks = [segment.prefix for segment in graph.segments if segment.prefix]
    assert [m for stage in plan.stages for m in stage.modules if m in set(blocks)] == blocks


def test_states_of_all_ranks_add_up_to_the_model() -> None:
    """GPT-2's 124,439,808 parameters: gradients and states once each, the tied embedding included."""
    plan = make_plan("gpt2", hardware="a100-80gb:1x8", constraints=Constraints(pp=1, dp_replicate=8)).plan
    parts = plan.predicted.memory[0].parts
    assert parts["parameters"] == parts["gradients"] == 4 * 124_439_808
    assert parts["compute_copy"] == 2 * 124_439_808
    assert parts["optimizer"] == 8 * 124_439_808


def test_a_tied_embedding_stands_on_both_ends_of_a_pipeline() -> None:
    """50,257 x 768 elements on the first and on the last stage."""
    constraints = Constraints(pp=2, dp_replicate=4, tp=1)
    plan = make_plan("gpt2", hardware="a100-80gb:1x8", constraints=constraints).plan
    held = sum(memory.parts["optimizer"] for memory in plan.predicted.memory)
    assert held == 8 * (124_439_808 + 50_257 * 768)
    assert plan.predicted.breakdown.seconds("pp.tied_gradients") > 0
    assert "tok_embeddings" in plan.stages[0].modules
    assert "output" in plan.stages[1].modules


def test_flop_of_llama_3_8b_by_hand() -> None:
    """Per token: 6 for every parameter of a matrix (the embedding is looked up, norms are not matrices), and attention,
    2 products of 2 S D forward and 4 backward in each of 32 layers."""
    graph, seq_len, _ = captured("llama3-8b", None, "bfloat16")
    per_layer = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336
    matrices = 32 * per_layer + 128_256 * 4096
    assert graph.num_parameters == matrices + 128_256 * 4096 + 65 * 4096 == 8_030_261_248
    attention = 32 * (2 + 4) * 2 * seq_len * 4096
    assert model_flop(graph, seq_len=seq_len) == seq_len * (6 * matrices + attention)
    assert model_flop(graph, seq_len=128) == 128 * (6 * matrices + 32 * 12 * 128 * 4096)


def test_equal_inputs_give_equal_bytes_in_another_process_too() -> None:
    settings = {"hardware": f"{TOY}:1x4", "global_batch": 8, "seq_len": 128}
    ours = plan_file.to_json(make_plan("gpt2", **settings).plan)
    assert plan_file.to_json(make_plan("gpt2", **settings).plan) == ours
    code = (
        "from planner import plan_file\nfrom planner.planning import make_plan\n"
        f"print(plan_file.to_json(make_plan('gpt2', **{settings!r}).plan), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    theirs = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert theirs.stdout == ours


def test_one_device_is_a_plan() -> None:
    plan = make_plan("gpt2", hardware="h100-sxm", devices=1, global_batch=1).plan
    c = plan.candidate
    assert (c.num_devices, c.num_microbatches, c.microbatch_size, c.zero_stage) == (1, 1, 1, 0)
    assert plan.predicted.breakdown.seconds("dp") == plan.predicted.breakdown.seconds("tp") == 0
    assert plan.predicted.breakdown.seconds("pp") == 0


def test_a_mixed_cluster_is_planned_at_its_slowest_and_each_group_alone() -> None:
    whole = make_plan("gpt2", hardware="two-islands", top=1).plan
    (warning,) = (text for text in whole.warnings if "mixes several kinds" in text)
    parts = [make_plan("gpt2", hardware=f"two-islands@{name}", top=1).plan for name in ("ib", "roce")]
    assert all(f"two-islands@{name}" in warning for name in ("ib", "roce"))
    assert whole.inputs.num_devices == sum(part.inputs.num_devices for part in parts)
    assert not any("mixes" in text for part in parts for text in part.warnings)
    assert len({plan.inputs.hardware_sha256 for plan in (whole, *parts)}) == 3


@pytest.mark.parametrize("hardware", ["mi300x:1x8", "frontier:4x8", "dgx-h100:64x8", "pcie-box:1x8", "sn40l:1x8"])
def test_every_kind_of_machine_is_planned(hardware: str) -> None:
    plan = make_plan("gpt2", hardware=hardware, top=1).plan
    assert plan.predicted.step_s > 0
    assert plan.inputs.hardware == hardware


def test_images_have_no_sequence_to_share() -> None:
    plan = make_plan("vit-l-16", hardware="h200-sxm:1x8", constraints=Constraints(tp=2)).plan
    assert plan.inputs.job.seq_len == 1
    assert not plan.candidate.sequence_parallel
    assert plan.predicted.tokens_per_s == pytest.approx(plan.inputs.job.global_batch / plan.predicted.step_s)


class Net(nn.Module):
    """Four equal layers behind a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.embedding.weight.requires_grad_(False)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return nn.functional.cross_entropy(x.flatten(0, 1).float(), labels.flatten())


def net_plan(seq_len: int = 16, **settings: Any) -> PlanResult:
    examples = (torch.zeros(2, 16, dtype=torch.int64),) * 2
    return make_plan(Net(), example_inputs=examples, hardware=f"{TOY}:1x4", seq_len=seq_len, **settings)


def test_every_stage_has_a_module_where_bare_operations_stand_between_blocks() -> None:
    """Each layer is followed by an addition of no module: five stages would leave one with nothing to build."""
    plan = net_plan(constraints=Constraints(pp=4)).plan
    assert all(stage.modules for stage in plan.stages)
    with pytest.raises(UsageError, match=r"pp \(8\) exceeds the 5 blocks of Net"):
        make_plan(Net(), example_inputs=(torch.zeros(2, 16, dtype=torch.int64),) * 2, hardware=f"{TOY}:2x4",
                  seq_len=16, constraints=Constraints(pp=8))  # fmt: skip


def test_frozen_parameters_have_no_optimizer_states() -> None:
    parts = net_plan(constraints=Constraints(dp_replicate=4)).plan.predicted.memory[0].parts
    trained, frozen = 4 * (32 * 32 + 32), 100 * 32
    assert parts["parameters"] == 4 * (trained + frozen)
    assert parts["gradients"] == 4 * trained
    assert parts["optimizer"] == 8 * trained


def test_a_sequence_of_one_token_is_planned() -> None:
    assert net_plan(seq_len=1).plan.inputs.job.seq_len == 1


def test_progress_and_seconds_are_told_and_never_part_of_the_plan() -> None:
    said: list[str] = []
    result = make_plan("gpt2", hardware=f"{TOY}:1x4", progress=said.append)
    assert said == ["tracing the model", "searching for the best layout"]
    assert set(result.seconds) == {"capture", "search", "total"}
    assert "seconds" not in plan_file.to_json(result.plan).partition('"predicted"')[0]


def test_the_default_batch_is_eight_samples_per_device() -> None:
    assert make_plan("gpt2", hardware=f"{TOY}:1x4").plan.inputs.job.global_batch == 32


def test_describe_names_what_was_chosen() -> None:
    c = make_plan("gpt2", hardware=f"{TOY}:1x4", constraints=Constraints(dp_shard=2, dp_replicate=2)).plan.candidate
    assert describe(c).startswith(f"pp 1, dp_replicate 2, dp_shard 2 (zero {c.zero_stage}), tp 1, microbatch ")


def test_what_does_not_fit_offers_more_devices_of_a_profile_file_too() -> None:
    pins = Constraints(pp=1, tp=1, recompute="none", memory_fraction=0.05)
    with pytest.raises(NoPlanError, match=r"1\. On 16 devices \(toy:4x4\) it fits: pp 1, dp_shard 16 \(zero 3\)"):
        make_plan("gpt2", hardware=f"{TOY}:1x4", seq_len=256, constraints=pins)
    make_plan("gpt2", hardware=f"{TOY}:4x4", seq_len=256, global_batch=32, constraints=pins)


def test_what_fits_on_no_number_of_devices_says_so() -> None:
    with pytest.raises(NoPlanError, match="No multiple of the devices up to 64 times fits either"):
        make_plan("gpt2", hardware=f"{TOY}:1x4", constraints=Constraints(tp=1, memory_fraction=0.001))


def test_nothing_obeys_the_rules() -> None:
    with pytest.raises(UsageError, match=r"no mesh of 4 devices obeys the rules for gpt2 with a global batch of 7"):
        make_plan("gpt2", hardware=f"{TOY}:1x4", global_batch=7, constraints=Constraints(max_pp=1, max_tp=1))


@pytest.mark.parametrize("model", ["gpt2", "llama3-8b", "mixtral-8x7b", "bert-large"])
def test_the_prediction_agrees_with_simulating_the_schedule(model: str) -> None:
    """The closed form of 1F1B against its event lists, with each stage's own forward and backward."""
    graph, seq_len, _ = captured(model, None, "bfloat16")
    case = Setting(graph, load_cluster("h100-sxm:1x8"), Job(global_batch=64, seq_len=seq_len))
    for found in search(case, Constraints(pp=4, memory_fraction=3.0), top=3).best:
        c, costs, cuts = found.costs.candidate, found.costs, found.split.cuts
        t = [float(costs.microbatch_s[a, b]) for a, b in pairwise(cuts)]
        forward = [float(costs.forward_s[a:b].sum()) for a, b in pairwise(cuts)]
        backward = [x - y for x, y in zip(t, forward, strict=True)]
        stages = tuple(StageCost(f, b, 0.0) for f, b in zip(forward, backward, strict=True))
        closed = sum(t) + (c.num_microbatches - 1) * max(t)
        assert simulate(make("1f1b", c.pp, c.num_microbatches), Cost(stages)).step_s == pytest.approx(closed, rel=0.02)
