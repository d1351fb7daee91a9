"""Where a node of a plan's layouts runs, as its operations have to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from planner.graph import Block
from planner.layouts.placements import Layout, Shape
from planner.runtime.parts import AxisGroups, Sequences, lay, located, part_shape, reordered, sequences_of

Held = Mapping[int, Tensor]
"""What a rank holds, by value of the block."""
Run = Callable[[Held], dict[int, Tensor]]
"""An operation's results by value; those that serve only ATen's own backward pass may be missing."""
Body = Callable[..., Any]
"""Takes the call's arguments with tensors in place of `Ref`."""


@dataclass(frozen=True)
class Site:
    """Where a node's operations run: their block at its sizes, and how values that they share with others lie."""

    block: Block
    symbolic: Block
    """The same with sizes as functions of the sequence."""
    shapes: Sequence[Shape]
    """Of the block's values, whole."""
    layouts: Mapping[int, Layout]
    """Of what the node reads and makes."""
    mesh: AxisGroups
    device: torch.device
    batch: int = 1
    """Samples in the block's values."""
    inner: Mapping[int, Shape] = field(default_factory=dict)
    """Shapes on this rank of values that have no layout, being made and read inside of a node."""

    def local(self, v: int) -> Shape:
        """Shape of a value on this rank."""
        if v in self.inner:
            return self.inner[v]
        return part_shape(self.layouts[v], self.shapes[v], self.mesh) if v in self.layouts else self.shapes[v]

    def own(self, whole: Tensor, v: int) -> Tensor:
        """This rank's part of a value that every rank has, sequences in their own order."""
        ordered = reordered(whole, self.sequences(v), self.mesh.zigzag)
        return lay(ordered, self.layouts[v], self.mesh) if v in self.layouts else ordered

    def is_cut(self, v: int) -> bool:
        return any(self.sharded(v, dim) for dim in range(len(self.shapes[v])))

    def sharded(self, v: int, dim: int) -> bool:
        pairs = zip(self.layouts.get(v, ()), self.mesh.sizes, strict=False)
        return any(p.kind == "S" and p.dim == dim and size > 1 for p, size in pairs)

    def sequences(self, v: int) -> Sequences:
        return sequences_of(self.symbolic.values[v].dims, self.batch)

    def located(self, v: int, dim: int) -> Callable[[Any, Any], tuple[Any, Any]]:
        """`located` for a dim of a value."""
        return located(self.layouts[v], self.shapes[v], dim, self.mesh)

    @cached_property
    def buffers(self) -> frozenset[int]:
        """Values that outlive the block's forward pass, parameters and activations aside."""
        made = {v for op in self.block.ops for v in op.outputs}
        others = made.union(self.block.inputs, (v for _, v in self.block.params))
        return frozenset(set(range(len(self.block.values))) - others)
