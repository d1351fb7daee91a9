"""Parameters of a rank: what of each lies here over ``tp`` or ``ep``, as a DTensor that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from planner.layouts import placements
from planner.layouts.placements import shard
from planner.plan import ParamLayout
from planner.runtime.meshes import Meshes
from planner.runtime.parts import AxisGroups, lay


@dataclass(frozen=True)
class Placer:
    """Cuts parameters as a plan says."""

    layouts: Mapping[str, ParamLayout]
    """By FQN."""
    meshes: Meshes
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Experts that this rank holds of a parameter, where they are not its share in order."""

    def axis(self, fqn: str) -> str | None:
        """The axis that holds parts of a parameter, besides those of data parallelism."""
        at = self.layouts[fqn].placements
        return next((axis for axis in ("ep", "tp") if at.get(axis, "R") != "R" and self.meshes.sizes[axis] > 1), None)

    def part(self, fqn: str, whole: Tensor) -> Tensor:
        """What this rank holds of a whole parameter."""
        axis = self.axis(fqn)
        if axis is None:
            return whole
        if fqn in self.rows:
            return whole.detach()[list(self.rows[fqn])]
        return lay(whole.detach(), (self._placement(fqn, axis),), AxisGroups.of(self._mesh(axis)))

    def place(self, fqn: str, param: nn.Parameter, part: Tensor | None = None) -> nn.Parameter:
        """The parameter of this rank, for a whole one on any device.

        Args:
            part: its `part`, where that is known already.
        """
        axis = self.axis(fqn)
        if axis is None:
            return param if part is None else nn.Parameter(part, requires_grad=param.requires_grad)
        mesh, at = self._mesh(axis), self._placement(fqn, axis)
        along: Placement = Shard(at.dim) if at.chunks == 1 else _StridedShard(at.dim, split_factor=at.chunks)
        local = self.part(fqn, param) if part is None else part
        shape = param.shape
        if fqn in self.rows:  # replicas have rows of their own
            shape = torch.Size((len(self.rows[fqn]) * mesh.size(), *shape[1:]))
        placed = DTensor.from_local(local, mesh, [along], run_check=False, shape=shape, stride=param.stride())
        return nn.Parameter(placed, requires_grad=param.requires_grad)

    def _mesh(self, axis: str) -> DeviceMesh:
        mesh = self.meshes.ep if axis == "ep" else self.meshes.tp
        assert mesh is not None, f"{axis} of one device holds no parts"
        return mesh

    def _placement(self, fqn: str, axis: str) -> placements.Placement:
        layout = self.layouts[fqn]
        at = placements.parse(layout.placements[axis])
        return shard(at.dim, layout.num_chunks if axis == "tp" else 1)
