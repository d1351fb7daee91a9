"""Calls of single operations: their random sizes and tensors, and the blocks that they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from planner.graph import Block, Dim, Op, Ref, Value
from tests.planner.layouts.aten import call, execute


@dataclass
class Sizes:
    """Random sizes and tensors of one call."""

    random: torch.Generator
    found: dict[str, int] = field(default_factory=dict)

    def __getattr__(self, name: str) -> int:
        """A size by one letter, the same each time."""
        if len(name) != 1:
            raise AttributeError(name)
        choices = (2, 3, 4, 5, 6, 8)
        return self.found.setdefault(name, choices[self.below(len(choices))])

    def below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.random))

    def x(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def ids(self, end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=self.random)

    def coin(self, *shape: int) -> Tensor:
        return self.ids(2, *shape).bool()


Call = tuple[Any, ...]
"""Operator with overload, then its arguments."""


def block_of(made: Call) -> tuple[Block, dict[int, Tensor]]:
    """A block of one operation, and its tensors."""
    target, *given = made
    tensors: list[Tensor] = []

    def lower(arg: Any) -> Any:
        if isinstance(arg, tuple | list):
            return tuple(lower(a) for a in arg)
        if not isinstance(arg, Tensor):
            return arg
        known = next((i for i, t in enumerate(tensors) if t is arg), None)
        if known is None:
            tensors.append(arg)
        return Ref(len(tensors) - 1 if known is None else known)

    args = tuple(lower(arg) for arg in given)
    count = len(tensors)
    op = Op(target, "", "forward", args, tuple(range(count)), (), _is_pointwise(target))
    copies = [a.clone() if isinstance(a, Tensor) else a for a in given]
    results = execute(op, copies, []) if op.name in WITHOUT_ATEN else call(op, copies)
    op = Op(target, "", "forward", args, op.inputs, tuple(range(count, count + len(results))), op.pointwise)
    if target.startswith("_to_copy"):
        results = tuple(t.to(getattr(torch, given[1].removeprefix("torch."))) for t in results)
    values = tuple(
        Value(tuple(map(Dim, t.shape)), str(t.dtype).removeprefix("torch."), i)
        for i, t in enumerate((*tensors, *results))
    )
    buffers = {arg.value for arg in args[3:5] if isinstance(arg, Ref)} if "batch_norm" in target else set()
    floats = tuple(i for i, t in enumerate(tensors) if t.is_floating_point() and i not in buffers)
    return Block(values, (op,), (), floats, op.outputs, ()), dict(enumerate(tensors))


WITHOUT_ATEN = {"attention", "rms_norm", "_grouped_mm"}
"""Calls that ATen does not have, or not in float64."""


def _is_pointwise(target: str) -> bool:
    name, _, overload = target.partition(".")
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    return found is not None and torch.Tag.pointwise in found.tags
