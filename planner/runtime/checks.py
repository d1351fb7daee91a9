"""Whether a plan can run here, with this model, before anything is changed."""

from __future__ import annotations

import warnings
from itertools import islice

import torch
from torch import nn

from planner.errors import UsageError
from planner.layouts.pins import matches
from planner.plan import Plan
from planner.runtime.pipeline import splits_backward

SHOWN = 3


def check_world(plan: Plan, world_size: int) -> None:
    """
    Raises:
        UsageError: another number of processes than the plan's devices.
    """
    c = plan.candidate
    if world_size != c.num_devices:
        degrees = " * ".join(
            f"{axis} {size}"
            for axis, size in (("pp", c.pp), ("dp_replicate", c.dp_replicate), ("dp_shard", c.dp_shard), ("cp", c.cp),
                               ("tp", c.tp))
        )  # fmt: skip
        raise UsageError(
            f"the plan is for {c.num_devices} devices ({degrees}); this job has {world_size} processes. Start one per "
            f"device (torchrun --nproc-per-node), or plan again for {world_size}."
        )


def check_plan(plan: Plan, model: nn.Module) -> None:
    """Warns where the plan was made with another torch.

    Raises:
        UsageError: parameters that are not the plan's, or what the runtime cannot execute.
    """
    c = plan.candidate
    if plan.inputs.job.precision == "fp16":
        raise UsageError("fp16 gradients need loss scaling, which this runtime has not: plan with precision bf16.")
    if c.zero_stage == 0 and c.state_shard > 1:
        raise UsageError(
            f"zero_stage 0 shards nothing, but dp_shard {c.dp_shard} * cp {c.cp} devices hold the same: let "
            "zero_stage be 1, or use dp_replicate."
        )
    if c.zero_stage == 3 and c.pp > 1 and splits_backward(plan.order):
        raise UsageError(
            f"schedule {c.schedule} runs the halves of a backward pass apart, and zero_stage 3 would gather parameters "
            "for each: let zero_stage be 2."
        )
    _check_parameters(plan, model)
    here = torch.__version__.partition("+")[0]
    if plan.inputs.torch_version not in (None, here):
        warnings.warn(
            f"the plan was made with torch {plan.inputs.torch_version}; this is torch {here}. Operations, and what "
            "they cost, may differ: plan again.",
            stacklevel=3,
        )


def _check_parameters(plan: Plan, model: nn.Module) -> None:
    names = dict(model.named_parameters())
    if plan.layouts:
        unknown = [fqn for fqn in names if not any(matches(layout.pattern, fqn) for layout in plan.layouts)]
        missing = [layout.pattern for layout in plan.layouts if not any(matches(layout.pattern, fqn) for fqn in names)]
        if unknown or missing:
            raise UsageError(
                f"parameters of {type(model).__name__} are not those of the plan for {plan.inputs.model}: "
                f"only in the model {_first(unknown)}; only in the plan {_first(missing)}. Plan this model."
            )
    found = sum(p.numel() for p in names.values())
    if plan.inputs.num_parameters not in (None, found):
        raise UsageError(
            f"{type(model).__name__} has {found} parameters, the plan for {plan.inputs.model} "
            f"{plan.inputs.num_parameters}, under the same names. Plan this model."
        )


def _first(names: list[str]) -> str:
    shown = ", ".join(islice(names, SHOWN))
    return (shown or "none") + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
