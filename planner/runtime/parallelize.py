"""A model that trains as its plan says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from planner.capture.batches import batch_of
from planner.capture.sources import load_model
from planner.errors import MeshwrightError, UsageError
from planner.plan import Plan
from planner.runtime.checks import check_plan, check_world
from planner.runtime.joining import join
from planner.runtime.meshes import make_meshes
from planner.runtime.parallel import Parallel, ParallelModel

Model = TypeVar("Model", bound=nn.Module)


def parallelize(
    model: Model,
    plan: Plan,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    example_inputs: Any = None,
    device: torch.device | str | None = None,
    compile: bool = False,  # noqa: A002  torch's own word for it
) -> Model:
    """Lay a model out over the ranks of this job, ready to train.

    The model itself comes back, of a class that is `ParallelModel` and its own: parameters are this rank's, DTensors
    where others hold parts too, under their own names; ``train_step`` computes gradients for any optimizer made of
    ``model.parameters()``. Modules of other pipeline stages are gone.

    Every rank must call it, under ``torchrun`` or with a process group. A model with weights must have the same on
    every rank; one built on ``meta`` is initialised as it is laid out, never whole.

    Args:
        loss_fn: ``loss_fn(output, target)``, where the model returns no loss; the target is a batch's last tensor.
        example_inputs: what ``train_step`` will get, of any number of samples, or ``inputs(batch, seq_len)``; default
            what the plan recorded.
        device: default the GPU of this rank where there is one, else the CPU.
        compile: let torch.compile have every block.
    Raises:
        UsageError: the job or the model is not the plan's, or the plan asks for what cannot run.
        TraceError, ModelSourceError: see `planner.capture.program.capture_program`, `planner.runtime.initialise`.
    """
    found = join(device)
    check_world(plan, dist.get_world_size())
    check_plan(plan, model)
    meshes = make_meshes(plan.candidate, rank=dist.get_rank(), device_type=found.type)
    state = Parallel(plan=plan, meshes=meshes, device=found, loss_fn=loss_fn, compile=compile)
    state.build(model, _recorded(plan) if example_inputs is None else example_inputs)
    cls = type(model)
    # An attribute of the model itself would be one more thing that makes its trace another one.
    model.__class__ = type(f"Parallel{cls.__name__}", (ParallelModel, cls), {"_parallel": state})
    return model


def auto_parallelize(
    model: Model,
    example_inputs: Any,
    *,
    hardware: str,
    devices: int | None = None,
    global_batch: int | None = None,
    seq_len: int | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,  # noqa: A002
    **planning: Any,
) -> Model:
    """`planner.make_plan` on the first rank, then `parallelize` on all.

    Args:
        planning: further arguments of `planner.make_plan`.
    """
    from planner.planning import make_plan

    join(device)
    plans: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            plans = [make_plan(
                model, hardware=hardware, devices=devices or (None if ":" in hardware else dist.get_world_size()),
                global_batch=global_batch, seq_len=seq_len, example_inputs=example_inputs, loss_fn=loss_fn, **planning,
            ).plan]  # fmt: skip
        except MeshwrightError as error:
            plans = [error]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(plans)
    if isinstance(plans[0], Exception):
        raise plans[0]
    return parallelize(model, plans[0], loss_fn, example_inputs=example_inputs, device=device, compile=compile)


def _recorded(plan: Plan) -> Any:
    """What the plan says that its model is fed."""
    if plan.inputs.batch:
        return batch_of(plan.inputs.batch)
    try:
        return load_model(plan.inputs.model, dtype=torch.bfloat16).inputs
    except MeshwrightError as unknown:
        raise UsageError(
            f"the plan does not say what {plan.inputs.model} is fed: call parallelize with example_inputs, a tuple or "
            "dict of tensors or a function inputs(batch, seq_len)."
        ) from unknown
