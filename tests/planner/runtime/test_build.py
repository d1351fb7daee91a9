"""A program on one device is the model itself."""

from __future__ import annotations

import copy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hardware_profiles.load import load_cluster
from planner.capture.program import capture_program
from planner.job import Job
from planner.layouts.model import analyse_model
from planner.plan import Candidate, Stage
from planner.runtime.build import Builder
from planner.runtime.parts import AxisGroups
from planner.runtime.stage import StageModule
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.planned import planned_block
from planner.solvers.setting import Setting
from tests.planner.runtime.small import FAMILIES, Small, small

BATCH = 2
CANDIDATE = Candidate(
    pp=1, dp_replicate=1, dp_shard=1, tp=1, sequence_parallel=False, zero_stage=0, microbatch_size=BATCH,
    num_microbatches=1, recompute="none",
)  # fmt: skip


def stages_of(given: Small, *, num_stages: int = 1, loss_fn: Any = None) -> list[StageModule]:
    """All stages of a model on one device, cut evenly."""
    program = capture_program(
        given.model, given.inputs, batch=BATCH, seq_len=given.seq_len, dtype=torch.float32, loss_fn=loss_fn
    )
    graph, cluster = program.graph, load_cluster("h100-sxm:1x1")
    setting = Setting(graph, cluster, Job(global_batch=BATCH, seq_len=given.seq_len, precision="fp32"))
    layouts, mesh = analyse_model(graph).at(1), LayoutMesh(cluster, ("tp",), (1,))
    details = {b: planned_block(setting, CANDIDATE, b, layouts[b], mesh) for b in range(len(graph.blocks))}
    named = [s.modules for s in graph.segments if s.modules]
    ends = [round(len(named) * i / num_stages) for i in range(num_stages + 1)]
    modules = [dict.fromkeys(m for s in named[a:b] for m in s) for a, b in pairwise(ends)]
    plan: Any = SimpleNamespace(
        candidate=CANDIDATE, stages=tuple(Stage(modules=tuple(m)) for m in modules), stage_ranks=(0,) * num_stages
    )
    meshes: Any = SimpleNamespace(coordinates={"pp": 0})
    alone = AxisGroups(("tp",), (1,), (0,), (None,))
    builder = Builder(given.model, plan, program, details, alone, meshes, torch.device("cpu"), torch.float32)
    return list(builder.stages(lambda _, forward: forward).values())


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {fqn: p.grad for fqn, p in model.named_parameters() if p.grad is not None}


def run(stages: list[StageModule], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    crossing: Any = ()
    for stage in stages:
        crossing = stage(*crossing, **batch)
    return crossing


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_stages", [1, 3])
def test_the_program_is_the_model(family: str, num_stages: int) -> None:
    given = small(family)
    reference = copy.deepcopy(given.model)
    batch = given.batch(BATCH)
    expected = reference(*batch)
    expected.backward()
    loss = run(stages_of(given, num_stages=num_stages), {f"b{i}": tensor for i, tensor in enumerate(batch)})
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    wanted, found = gradients(reference), gradients(given.model)
    assert wanted.keys() == found.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert all(float((found[fqn] - grad).abs().max()) < 1e-6 * largest for fqn, grad in wanted.items())
    for name, buffer in reference.named_buffers():
        assert torch.equal(given.model.get_buffer(name), buffer), name


def test_what_crosses_has_the_shapes_that_were_said() -> None:
    given = small("gqa")
    stages = stages_of(given, num_stages=3)
    batch = {f"b{i}": tensor for i, tensor in enumerate(given.batch(BATCH))}
    crossing: Any = ()
    for stage, following in pairwise(stages):
        crossing = stage(*crossing, **batch)
        likes = list(following.arriving.values())
        assert [(t.shape, t.dtype) for t in crossing] == [(t.shape, t.dtype) for t in likes]
        assert len(likes) == 1, "rotary angles are computed where they are needed, not sent"


class Detached(nn.Module):
    """A straight-through estimator, and a block that hands its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            y = layer(x)
            x = y + (y.round() - y).detach() * self.scale
        return (x * torch.tensor([2.0] * 8)).square().mean()


def test_detached_values_constants_and_buffers() -> None:
    torch.manual_seed(0)
    model = Detached()
    given = Small(model, lambda batch, _: (torch.empty(batch, 8),), 1)
    reference, (x,) = copy.deepcopy(model), given.batch(BATCH)
    expected = reference(x)
    expected.backward()
    loss = run(stages_of(given), {"b0": x})
    loss.backward()
    assert torch.equal(loss, expected)
    assert all(torch.equal(gradients(model)[fqn], grad) for fqn, grad in gradients(reference).items())


def test_a_loss_function_reads_the_last_tensor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    given = Small(model, lambda batch, _: (torch.empty(batch, 8), torch.empty(batch, dtype=torch.int64)), 1)
    reference = copy.deepcopy(model)
    x, target = torch.randn(BATCH, 8), torch.tensor([1, 3])
    expected = nn.functional.cross_entropy(reference(x), target)
    expected.backward()
    loss = run(stages_of(given, loss_fn=nn.functional.cross_entropy), {"b0": x, "b1": target})
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for fqn, grad in gradients(reference).items():
        torch.testing.assert_close(gradients(model)[fqn], grad)


class Sliced(nn.Module):
    """A slice that takes everything is the tensor itself, not a detached one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x[:, 0:].square().mean()


def test_a_slice_of_everything_passes_gradients_on() -> None:
    torch.manual_seed(0)
    model = Sliced()
    given = Small(model, lambda batch, _: (torch.empty(batch, 8),), 1)
    reference, (x,) = copy.deepcopy(model), given.batch(BATCH)
    reference(x).backward()
    run(stages_of(given), {"b0": x}).backward()
    for fqn, grad in gradients(reference).items():
        torch.testing.assert_close(gradients(model)[fqn], grad)
