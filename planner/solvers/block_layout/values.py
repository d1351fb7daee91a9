"""A block's values over a mesh: shapes, what is a weight or has a gradient, bytes on one device, legal layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import Literal

from costmodels.compute import DTYPE_BYTES
from planner import ops
from planner.graph import Block
from planner.layouts.placements import REPLICATE, Layout, Placement, Shape, local_shape, shard
from planner.layouts.redistribution import absolute
from planner.layouts.strategies.nodes import differentiable
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.redistribution import Tensor
from planner.solvers.setting import Setting

Between = Literal["any", "whole", "sequence"]


@dataclass(frozen=True, eq=False)
class BlockValues:
    """The values of one distinct block in one pass over the mesh."""

    setting: Setting
    index: int
    """Of the block in the graph."""
    batch: int
    """Samples over all devices."""
    mesh: LayoutMesh

    @property
    def block(self) -> Block:
        return self.setting.graph.blocks[self.index]

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(value.shape(self.batch, self.setting.job.seq_len) for value in self.block.values)

    @cached_property
    def trained(self) -> frozenset[int]:
        """Parameters that have a gradient, here or in another block that shares them."""
        return frozenset(v for fqn, v in self.block.params if fqn in self.setting.trained[self.index])

    @cached_property
    def differentiable(self) -> frozenset[int]:
        """Values that have a gradient, trained parameters among them."""
        return differentiable(self.block, self.trained)

    @cached_property
    def weights(self) -> frozenset[int]:
        """Parameters, and what is a mere copy of them."""
        found = {v for _, v in self.block.params}
        for op in self.block.ops:
            if op.phase == "forward" and op.name in ops.COPIES and op.inputs and found.issuperset(op.inputs):
                found.update(op.outputs)
        return frozenset(found)

    @cached_property
    def inside(self) -> frozenset[int]:
        """Values that nodes of the problem make; the others are there in any layout."""
        made = (v for op in self.block.ops if op.phase == "forward" for v in op.outputs)
        return frozenset({*self.block.inputs, *made, *self.weights})

    def bytes_of(self, v: int, layout: Layout) -> float:
        """Bytes of a value on one device, in the precision in which it is computed with; all with the empty layout."""
        numel = prod(local_shape(self.shapes[v], layout, self.mesh.sizes[: len(layout)]))
        return float(numel * DTYPE_BYTES[self.block.values[v].dtype])

    def states_of(self, v: int, layout: Layout) -> float:
        """Bytes of a parameter at rest; with its gradient and optimizer states where it is trained."""
        numel, precision = prod(local_shape(self.shapes[v], layout, self.mesh.sizes)), self.setting.precision
        trained = precision.grad_bytes + self.setting.num_states * precision.state_bytes
        return float(numel * (precision.param_bytes + (trained if v in self.trained else 0)))

    def tensor(self, v: int) -> Tensor:
        """A value as it is redistributed; gradients of weights in the precision in which they are reduced."""
        element = DTYPE_BYTES[self.block.values[v].dtype]
        if v not in self.differentiable:
            return Tensor(self.shapes[v], element, gradient_bytes=0)
        return Tensor(self.shapes[v], element, self.setting.precision.reduced_bytes if v in self.weights else element)

    def along(self, v: int, placement: Placement) -> str:
        """What a shard of a value is one of: the batch, the sequence (in a flattened dim: its inner part), a width."""
        dim = self.block.values[v].dims[placement.dim]
        if dim.slope and (placement.chunks > 1 or not dim.per_batch or self.batch == 1):
            return "sequence"
        return "batch" if dim.per_batch else "width"

    def known(self, v: int, layout: Layout) -> bool:
        """Whether the axes of a layout do not cut across each other."""
        return _known(layout, self.shapes[v], self.mesh.sizes)

    def borders(self, between: Sequence[Between]) -> tuple[Layout, ...]:
        """What the activations between blocks may be: whole, or evenly sharded, along what ``between`` says of each
        axis."""
        activations = (*self.block.inputs, *self.block.outputs)
        if not activations:
            return (self.whole,)
        longest = max(activations, key=lambda v: len(self.shapes[v]))
        dims = [shard(d) for d in range(len(self.shapes[longest]))]
        per_axis = []
        for kind in between:
            along = [place for place in dims if kind in ("any", self.along(longest, place))]
            per_axis.append(along if along and kind == "sequence" else [REPLICATE, *along])
        return tuple(layout for layout in product(*per_axis) if self._even(self.shapes[longest], layout))

    def on(self, layouts: Sequence[Layout], v: int) -> list[Layout]:
        """Border layouts as one of several activations has them: whole where its shape does not allow one."""
        shape = self.shapes[v]
        fits = (all(p.dim < len(shape) for p in layout) and self._even(shape, layout) for layout in layouts)
        return [layout if fit else self.whole for layout, fit in zip(layouts, fits, strict=True)]

    @property
    def whole(self) -> Layout:
        return (REPLICATE,) * len(self.mesh.sizes)

    def _even(self, shape: Shape, layout: Layout) -> bool:
        shares = [1] * len(shape)
        for placement, size in zip(layout, self.mesh.sizes, strict=True):
            if placement.kind == "S":
                shares[placement.dim] *= size
        return all(size % share == 0 for size, share in zip(shape, shares, strict=True))


@lru_cache(maxsize=1 << 16)
def _known(layout: Layout, shape: Shape, sizes: tuple[int, ...]) -> bool:
    return absolute(layout, shape, sizes) is not None
