"""Axes over the ranks of one launch, for code that runs on one of them."""

from __future__ import annotations

from functools import cache

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from planner.runtime.parts import AxisGroups

AXES = ("a", "b", "c")


@cache
def axis_groups(*sizes: int, zigzag: int = 1) -> AxisGroups:
    """All ranks as a mesh of these sizes; in a process of its own, a mesh once."""
    assert dist.is_initialized()
    return AxisGroups.of(init_device_mesh("cpu", sizes, mesh_dim_names=AXES[: len(sizes)]), zigzag=zigzag)
