"""Models that train as plans say, against the same models on one process."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from planner.capture.program import ModelProgram, capture_program
from planner.capture.sources import example_function
from planner.runtime.parallelize import auto_parallelize, parallelize
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.plans import captured, plan_of
from tests.planner.runtime.stages import LENGTH, Model, batch, distance

PLANS: dict[str, dict[str, Any]] = {
    "fsdp": {"dp_shard": 4, "zero_stage": 3, "num_microbatches": 2},
    "hsdp": {"dp_replicate": 2, "dp_shard": 2, "zero_stage": 3, "num_microbatches": 2},
    "tp + sp": {"tp": 2, "dp_shard": 2, "zero_stage": 3, "sequence_parallel": True},
    "pp x fsdp": {"pp": 2, "dp_shard": 2, "zero_stage": 3, "num_microbatches": 2, "recompute": "full"},
    "pp x tp": {"pp": 2, "tp": 2, "num_microbatches": 2},
    "zb-v alone": {"pp": 2, "tp": 2, "num_microbatches": 4, "schedule": "zb-v", "num_chunks": 2},
}

TIED = set(PLANS) - {"pp x tp"}
"""Where one parameter at both ends of the model is something to think about. More plans are in `test_equivalence`."""


def _whole(model: torch.nn.Module, tensors: Any, steps: int) -> tuple[list[float], list[float], dict[str, Any]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, norms = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*tensors)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters(remove_duplicate=False)}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, gradients


@cache
def program(tied: bool) -> ModelProgram:
    inputs, _ = example_function(batch(2), where="examples")
    return capture_program(Model(tied=tied), inputs, batch=2, seq_len=LENGTH, dtype=torch.float32)


def _trained(name: str, *, tied: bool, steps: int = 3) -> dict[str, float]:
    torch.manual_seed(0)
    model = Model(tied=tied)
    plan = plan_of(program(tied).graph, seq_len=LENGTH, **PLANS[name])
    tensors = batch(plan.inputs.job.global_batch)
    losses, norms, expected = _whole(copy.deepcopy(model), tensors, steps)
    with captured(program(tied)):
        parallel = parallelize(model, plan, example_inputs=batch(2))
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2)
    worst = {"loss": 0.0, "norm": 0.0, "gradient": 0.0}
    for step in range(steps):
        optimizer.zero_grad()
        loss = parallel.train_step(tensors)
        worst["loss"] = max(worst["loss"], abs(loss.item() - losses[step]))
        grads = {name: p.grad.clone() for name, p in parallel.named_parameters()}
        worst["norm"] = max(worst["norm"], abs(parallel.clip_grad_norm_(0.5).item() / norms[step] - 1))
        optimizer.step()
    assert isinstance(parallel, Model)
    for fqn, grad in grads.items():
        full = grad.full_tensor() if isinstance(grad, DTensor) else grad
        worst["gradient"] = max(worst["gradient"], distance(full, expected[fqn]))
    return worst


def _all(names: list[str]) -> dict[str, dict[str, float]]:
    found = {}
    for name in names:
        for tied in {False, name in TIED}:
            found[f"{name}{' tied' * tied}"] = _trained(name, tied=tied)
    return found


def test_every_plan_trains_as_one_process_does() -> None:
    program(tied=False), program(tied=True)
    for found in run_ranks(4, _all, list(PLANS), timeout_s=150):
        wrong = {k: v for k, v in found.items() if v["loss"] > 1e-5 or not v["gradient"] < 1e-4 or v["norm"] > 1e-4}
        assert not wrong


def _planned_here() -> tuple[str, float]:
    torch.manual_seed(0)
    model, tensors = Model(), batch(8)
    expected = model(*tensors).item()
    found = auto_parallelize(model, batch(2), hardware="h100-sxm:1x2", global_batch=8, seq_len=LENGTH, precision="fp32")
    return str(found.plan.candidate), abs(found.train_step(tensors).item() - expected)


def test_ranks_agree_on_a_plan_that_one_of_them_makes() -> None:
    (first, distance_of_first), (second, distance_of_second) = run_ranks(2, _planned_here)
    assert first == second
    assert max(distance_of_first, distance_of_second) < 1e-5
