"""Data parallelism of one pipeline stage by torch's ``fully_shard``, and when its gradients are reduced.

What ``fully_shard`` communicates, per stage and step. A *group* is one unit of the stage (units that share a parameter
are one), or the experts of one unit, which lie over another mesh. With ``m`` microbatches:

==========================  ==================  ============================================  ==========================
zero_stage                  3                   2                                             1, 0
==========================  ==================  ============================================  ==========================
all-gather over ``fsdp``    2 m (forward and    1, in the first forward                       1, in the first forward
                            backward)
reduce-scatter, ``fsdp``    m                   m                                             1, in the last backward
all-reduce, dp_replicate    1, in the last backward
==========================  ==================  ============================================  ==========================

- all-gather: every parameter of the group, frozen ones too, in the compute dtype; a dim 0 that the devices do not
  divide is padded: ``devices * ceil(size / devices)`` rows. The whole is ``devices`` times what a device sends.
- reduce-scatter: gradients of the group's parameters that have one, equally padded, in the dtype of reduction.
- all-reduce: one device's part of that. Where ``dp_shard * cp`` = 1 it is all of the group's gradients.
- Over one device nothing is communicated. Units whose output needs no gradient (frozen beginnings) are not gathered in
  the backward pass; groups without gradients are not reduced.

Under stages 2 and 3 with replicas the reduced shards of earlier microbatches wait in the dtype of reduction for the
last one. Gradients are stored in the dtype of the parameter.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor, Shard

from costmodels.memory import Precision
from planner.layouts.data_parallel import shard_dim
from planner.runtime.meshes import Meshes


def compute_dtype(precision: Precision) -> torch.dtype:
    """In which the model computes."""
    return getattr(torch, precision.compute_dtype)


def param_dtype(precision: Precision) -> torch.dtype:
    """Of the parameters that the optimizer updates."""
    return torch.float32 if precision.param_bytes == 4 else compute_dtype(precision)


def mixed_precision(precision: Precision) -> MixedPrecisionPolicy:
    """Inputs are not cast: the program of a stage knows the dtype of every value."""
    compute = compute_dtype(precision)
    if param_dtype(precision) == compute:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    reduce = torch.float32 if precision.reduced_bytes == 4 else compute
    return MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce, cast_forward_inputs=False)


def shard_units(
    stage: nn.Module, groups: Sequence[Sequence[nn.Module]], meshes: Meshes, *, zero_stage: int, precision: Precision
) -> None:
    """`fully_shard` every group of units, in order of execution, then the stage.

    Parameters become DTensors over ``fsdp`` besides what they are already. Nothing happens where there is one device
    to share with and parameters are computed with as they are: `fully_shard` would hold every parameter twice.

    Args:
        groups: modules of the stage that hold all of its parameters; a list of several shares some.
    """
    alone = meshes.fsdp.size() == 1 and (meshes.experts is None or meshes.expert_fsdp.size() == 1)
    if alone and param_dtype(precision) == compute_dtype(precision):
        return
    # A unit may hand on a view of what a collective made: nothing of a program writes into it.
    warnings.filterwarnings("ignore", message="(?s).*returned a view tensor")
    # Meshes read their coordinates from tensors, which a dry run must not turn into fakes.
    with unset_fake_temporarily():
        experts = _mesh_info(meshes.expert_fsdp) if meshes.experts is not None else None
        num_shards = meshes.sizes["fsdp"]

        def place(param: nn.Parameter) -> Shard | ShardPlacementResult:
            local = param.to_local() if isinstance(param, DTensor) else param
            if experts is not None and is_expert(param):
                return ShardPlacementResult(
                    placement=Shard(shard_dim(tuple(local.shape), experts.shard_mesh_size)), mesh_info=experts
                )
            return Shard(shard_dim(tuple(local.shape), num_shards))

        policy = mixed_precision(precision)
        ignored = {p for p in stage.parameters() if p.ndim == 0}
        for modules in [*groups, [stage]]:
            fully_shard(
                modules[0] if len(modules) == 1 else list(modules),  # type: ignore[call-overload]
                mesh=meshes.fsdp,
                reshard_after_forward=zero_stage == 3,
                shard_placement_fn=place,
                mp_policy=policy,
                ignored_params=ignored,
            )
    _prefetch(groups, trained_before=not getattr(stage, "first", True))


def is_expert(param: torch.Tensor) -> bool:
    """Whether a parameter lies over ``ep``."""
    return isinstance(param, DTensor) and "ep" in (param.device_mesh.mesh_dim_names or ())


def _mesh_info(mesh: DeviceMesh) -> FSDPMeshInfo:
    if mesh.ndim == 1:
        return FSDPMeshInfo(mesh, shard_mesh_dim=0)
    return HSDPMeshInfo(mesh, shard_mesh_dim=1, replicate_mesh_dim=0)


def _prefetch(groups: Sequence[Sequence[nn.Module]], *, trained_before: bool) -> None:
    """In the backward pass every group gathers the one before it ahead of time.

    That is what `fully_shard` does by itself, from the order of the forward passes so far; with several microbatches
    under way it goes one too far, and gathers what nobody needs.
    """
    for i, modules in enumerate(groups):
        trained_before = trained_before or any(p.requires_grad for m in modules for p in m.parameters())
        if i + 1 < len(groups):
            ahead = [modules[0]] if trained_before else []
            for module in groups[i + 1]:
                assert isinstance(module, FSDPModule)
                module.set_modules_to_backward_prefetch(ahead)  # type: ignore[arg-type]


def before_backward(stage: nn.Module, *, zero_stage: int, last: bool) -> None:
    """Whether the coming backward pass of one microbatch reduces gradients and frees gathered parameters.

    Args:
        last: of the step's microbatches.
    """
    if isinstance(stage, FSDPModule):
        stage.set_requires_gradient_sync(zero_stage >= 2 or last)
        stage.set_requires_all_reduce(last)
        stage.set_reshard_after_backward(zero_stage == 3 or last)


def hold_gradients(stage: nn.Module) -> None:
    """The coming backward pass neither reduces nor frees: `reduce_gradients` will."""
    if isinstance(stage, FSDPModule):
        stage.set_requires_gradient_sync(False)
        stage.set_reshard_after_backward(False)


def reduce_gradients(stage: nn.Module) -> None:
    """What the hooks of a backward pass would have done since `before_backward`."""
    if isinstance(stage, FSDPModule):
        root = fully_shard.state(stage)  # type: ignore[attr-defined]
        for state in reversed(root._state_ctx.all_states):
            for group in reversed(state._fsdp_param_groups):
                group.post_backward()
        root._root_post_backward_final_callback()


def reduce_scalars(stage: nn.Module, meshes: Meshes) -> None:
    """Average the gradients of parameters without dims, which `fully_shard` leaves alone."""
    for param in stage.parameters():
        if param.ndim == 0 and param.grad is not None:
            for axis in ("fsdp", "dp_replicate"):
                if axis in meshes.groups:
                    dist.all_reduce(param.grad, op=dist.ReduceOp.AVG, group=meshes.groups[axis])
