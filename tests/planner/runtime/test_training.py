"""What goes into a step and what comes out, on real processes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from costmodels.schedules import make
from planner.capture.program import ModelProgram, capture_program
from planner.capture.sources import example_function
from planner.errors import UsageError
from planner.runtime.parallelize import parallelize
from planner.runtime.pipeline import _text
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.plans import captured, plan_of
from tests.planner.runtime.stages import LENGTH, Model, batch, distance

FSDP = {"dp_shard": 4, "zero_stage": 3, "num_microbatches": 2}


def _frozen(model: Model) -> Model:
    for part in (model.embed, model.blocks[0], model.blocks[2].up):
        part.requires_grad_(False)
    return model


@cache
def program(frozen: bool = False) -> ModelProgram:
    inputs, _ = example_function(batch(2), where="examples")
    model = _frozen(Model()) if frozen else Model()
    return capture_program(model, inputs, batch=2, seq_len=LENGTH, dtype=torch.float32)


def _laid_out(model: nn.Module, traced: ModelProgram, **changes: Any) -> Any:
    with captured(traced):
        return parallelize(model, plan_of(traced.graph, seq_len=LENGTH, **changes), example_inputs=batch(2))


def _model() -> Model:
    torch.manual_seed(0)
    return Model()


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def _expected(model: nn.Module, tensors: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(*tensors)
    loss.backward()
    return loss.item(), _gradients(model)


def _close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], times: float = 1.0) -> None:
    for name, gradient in found.items():
        assert distance(gradient, times * expected[name]) < 1e-4, name


def _batches() -> None:
    tensors = batch(16)
    loss, expected = _expected(_model(), tensors)
    model = _laid_out(_model(), program(), **FSDP)
    assert abs(model.train_step(tensors).item() - loss) < 1e-5
    _close(_gradients(model), expected)
    own = tuple(t.chunk(4)[dist.get_rank()] for t in tensors)
    assert abs(model.train_step(own, local=True).item() - loss) < 1e-5
    _close(_gradients(model), expected, times=2.0)  # gradients add up as of any model
    few = tuple(t[:2] for t in own)
    with torch.no_grad():
        assert model(*few).item() == pytest.approx(_model()(*few).item(), abs=1e-5)
    with pytest.raises(UsageError, match="one microbatch, 2 samples"):
        model(*own)
    for wrong, local, said in (
        (batch(12), False, "dim 0 must be the 16 samples of the global batch"),
        (tensors, True, "dim 0 must be the 4 samples of this rank"),
        (tuple(t[:, :4] for t in tensors), False, r"samples of shapes \[4\] int64"),
        (tensors[0], False, "takes what the model's forward takes"),
        ((torch.tensor(3.0),), False, r"has shape \(\)"),
    ):
        with pytest.raises(UsageError, match=said):
            model.train_step(wrong, local=local)


def _parts_without_gradients() -> None:
    tensors = batch(16)
    loss, expected = _expected(_frozen(_model()), tensors)
    for changes in (FSDP, {"pp": 2, "dp_shard": 2, "zero_stage": 3, "num_microbatches": 4}):
        model = _laid_out(_frozen(_model()), program(frozen=True), **changes)
        assert abs(model.train_step(tensors).item() - loss) < 1e-5
        found = _gradients(model)
        _close(found, expected)
        assert {name.split(".")[0] for name in found} <= {"blocks", "norm", "head"}
        assert not any(name.startswith(("blocks.0.", "blocks.2.up.")) for name in found)


def _own_actions() -> None:
    """Microbatches backward in another order than any schedule's."""
    order = make("1f1b", 2, 4, 1)
    rows = [[_text(entry) for entry in row] for row in order.orders]
    swapped = tuple(
        tuple(
            text.translate(str.maketrans("23", "32")) if text[1] in "FB" and text[2] in "23" else text for text in row
        )
        for row in rows
    )
    tensors = batch(16)
    loss, expected = _expected(_model(), tensors)
    model = _laid_out(
        _model(), program(), pp=2, dp_shard=2, zero_stage=2, num_microbatches=4, schedule="actions", actions=swapped
    )
    assert abs(model.train_step(tensors).item() - loss) < 1e-5
    _close(_gradients(model), expected)


def _built_on_meta() -> None:
    tensors, losses = batch(16), []
    for changes in (FSDP, {"pp": 2, "tp": 2, "num_microbatches": 8}):
        torch.manual_seed(7)
        with torch.device("meta"):
            model = Model()
        whole = sum(p.numel() for p in model.parameters())
        model = _laid_out(model, program(), **changes)
        own = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())
        assert own < 0.6 * whole
        assert not any(p.is_meta for p in model.parameters())
        losses.append(model.train_step(tensors).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(3.5, abs=0.5)  # about log(30)


def _bfloat16() -> None:
    tensors = batch(16)
    loss, expected = _expected(_model(), tensors)
    inputs, _ = example_function(batch(2), where="examples")
    traced = capture_program(_model(), inputs, batch=2, seq_len=LENGTH, dtype=torch.bfloat16)
    for precision, dtype in (("bf16", torch.float32), ("bf16-pure", torch.bfloat16)):
        model = _laid_out(_model(), traced, precision=precision, **{**FSDP, "dp_shard": 2, "dp_replicate": 2})
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert abs(model.train_step(tensors).item() - loss) < 3e-2
        found = _gradients(model)
        assert all(distance(gradient.float(), expected[name]) < 0.1 for name, gradient in found.items())


def _modules_of_others_are_gone() -> None:
    model = _laid_out(_model(), program(), pp=4, num_microbatches=4)
    rank = dist.get_rank()
    assert list(model.blocks._modules) == [str(rank)]
    assert ("embed" in model._modules, "head" in model._modules) == (rank == 0, rank == 3)
    with pytest.raises(UsageError, match="runs whole steps only"):
        model(*batch(2))


def _recorded_examples() -> None:
    """What the plan says that its model is fed stands in for examples."""
    traced = program()
    plan = plan_of(traced.graph, seq_len=LENGTH, **FSDP)
    untold = replace(plan, inputs=replace(plan.inputs, batch=()))
    with captured(traced):
        with pytest.raises(UsageError, match="call parallelize with example_inputs"):
            parallelize(copy.deepcopy(_model()), untold)
        laid_out = parallelize(copy.deepcopy(_model()), plan)
        laid_out.train_step(batch(16))
    assert all(isinstance(p, DTensor) for p in laid_out.parameters())


CHECKS = [
    _batches, _parts_without_gradients, _own_actions, _built_on_meta, _bfloat16, _modules_of_others_are_gone,
    _recorded_examples,
]  # fmt: skip


def _all() -> list[str]:
    done = []
    for check in CHECKS:
        check()
        done.append(check.__name__)
    return done


def test_steps_on_four_processes() -> None:
    program(), program(frozen=True)
    for done in run_ranks(4, _all, timeout_s=100):
        assert len(done) == len(CHECKS)
