"""Norms of gradients that lie over several meshes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from planner.runtime.meshes import Meshes
from planner.runtime.pipeline import Tie


@torch.no_grad()
def clip_grad_norm(params: Sequence[nn.Parameter], max_norm: float, meshes: Meshes, ties: Sequence[Tie] = ()) -> Tensor:
    """Scale all gradients of the model in place so that their common 2-norm is at most ``max_norm``; the norm before.

    Every rank must call it. One all-reduce of 4 bytes over all ranks: each adds the squares of its parts, divided by
    how many ranks hold the same.

    Args:
        params: of this rank.
        ties: parameters of which several stages hold copies; they count once.
    """
    shares = {id(copy): 1 / tie.num_copies for tie in ties for copy in tie.copies}
    device = torch.device(meshes.device_type)
    total = torch.zeros((), device=device)
    grads = []
    for param in params:
        if param.grad is not None:
            local = param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad
            grads.append(local)
            share = shares.get(id(param), 1.0) / copies(param, meshes)
            total += local.float().square().sum() * share
    if meshes.world_size > 1:
        dist.all_reduce(total)
    norm = total.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.to(grad.dtype))
    return norm


def copies(param: Tensor, meshes: Meshes) -> int:
    """Ranks of a stage that hold the same part of a parameter."""
    parts = 1
    if isinstance(param, DTensor):
        for dim, placement in enumerate(param.placements):
            parts *= 1 if placement.is_replicate() else param.device_mesh.size(dim)
    return meshes.spmd.size() // parts
