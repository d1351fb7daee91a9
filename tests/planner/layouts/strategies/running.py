"""Operations of a node on plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from planner.graph import Block, Op, Ref
from planner.layouts.placements import Placement, Shape
from planner.layouts.strategies import OpNode
from tests.planner.layouts.aten import execute
from tests.planner.layouts.strategies.pieces import cut

Ranks = list[dict[int, Tensor]]
"""Per rank, tensors by value."""


@dataclass
class Node:
    """A node of a block at some sizes."""

    block: Block
    shapes: Sequence[Shape]
    node: OpNode
    gradients: frozenset[int]
    """Values that have one."""
    checked: frozenset[int] = field(init=False)
    """Outputs that a rank's own must give when put together: of several operations, those that the forward pass goes on
    with, since what they keep for the backward pass may be ordered in another way on every rank."""

    def __post_init__(self) -> None:
        self.ops = [self.block.ops[i] for i in self.node.ops]
        inside = set(self.node.ops)
        onward = {
            v for i, op in enumerate(self.block.ops) if op.phase == "forward" and i not in inside for v in op.inputs
        }
        self.checked = frozenset(
            v for v in self.node.outputs if len(inside) == 1 or v in onward or v in self.block.outputs
        )
        if self.ops[0].name == "max_pool2d_with_indices":
            self.checked = frozenset(self.node.outputs[:1])  # indices count the elements of a rank's own part
        self.num_tokens = (*self.shapes[self.ops[-1].outputs[0]], 1)[0]
        """Of routed experts, whose last operation gives a row per token."""
        self.is_routed = any(op.name == "_grouped_mm" for op in self.ops[:-1])
        self.gradients = self.gradients & {*self.checked, *self.node.inputs}

    def run(self, tensors: Mapping[int, Tensor], shapes: Mapping[int, Shape] | None = None) -> dict[int, Tensor]:
        """Outputs of the operations one after another.

        Args:
            shapes: of values on this rank, where they are not those of the whole.
        """
        held = dict(tensors)
        for op in self.ops:
            held.update(run_op(op, held, [(shapes or {}).get(v, self.shapes[v]) for v in op.outputs]))
        return {v: held[v] for v in self.node.outputs}


def run_op(op: Op, held: Mapping[int, Tensor], shapes: list[Shape]) -> dict[int, Tensor]:
    """One operation whose results have these shapes; arguments that it writes into are copied first."""
    args = [_arg(arg, held) for arg in op.args]
    if op.name.endswith("_") and isinstance(args[0], Tensor):
        args[0] = args[0].clone()
    return dict(zip(op.outputs, execute(op, args, shapes), strict=True))


def tensors_of(op: Op) -> list[Any]:
    """Arguments of an operation with the index of a value in place of its `Ref`; what is no tensor stays."""
    return [arg.value if isinstance(arg, Ref) else arg for arg in op.args]


def _arg(arg: Any, held: Mapping[int, Tensor]) -> Any:
    if isinstance(arg, Ref):
        return held[arg.value] if arg.value in held else torch.empty(0)
    if isinstance(arg, tuple):
        return [_arg(a, held) for a in arg]
    return arg


def positions(length: int, dim: int, placement: Placement, rank: int, num_ranks: int) -> Tensor:
    """Which indices of a dim a rank holds."""
    every = torch.arange(length)
    along = placement.kind == "S" and placement.dim == dim
    return cut(every, Placement("S", 0, placement.chunks), rank, num_ranks) if along else every


def all_reduce(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def outputs(node: Node, results: list[tuple[Tensor, ...]]) -> Ranks:
    """Per rank, results of the single operation by value."""
    (op,) = node.ops
    return [dict(zip(op.outputs, found, strict=False)) for found in results]
