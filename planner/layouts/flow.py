"""Atoms of all values of a block, found by walking its operations in order.

What an operation cannot do on a shard is *fixed*. An operation without a rule fixes all dims of its arguments: it is
never sharded wrongly, only not at all. Backward operations follow the forward tensors whose gradients they compute
and fix nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner import ops
from planner.graph import Block
from planner.layouts.atoms import Factors
from planner.layouts.placements import Shape
from planner.layouts.relations import Relations
from planner.layouts.rules import rule_of


class DimFlow(Relations):
    """Relates the dims of all values of ``block``, whose shapes are ``shapes``."""

    def __init__(self, block: Block, shapes: Sequence[Shape]) -> None:
        super().__init__(block, shapes)
        self.contracted: dict[int, Factors] = {}
        """Op index -> atoms that it sums over: sharded, its result is a partial sum."""
        self.born: list[Factors] = []
        """Dims that a forward operation makes of whole arguments."""
        self.weights: set[int] = {v for _, v in block.params}
        """Parameters, and what is a mere copy of them (transposed, cast, reshaped)."""

    def run(self) -> DimFlow:
        block = self.block
        gradient_of = {grad: param for fqn, grad in block.param_grads for name, param in block.params if name == fqn}
        for self.index, op in enumerate(block.ops):
            for value, dims in zip(op.outputs, rule_of(op)(self, op), strict=False):
                self.dims[value] = dims
            if op.name in ops.COPIES and op.inputs and self.weights.issuperset(op.inputs):
                self.weights.update(op.outputs)
            for value in op.outputs:
                if value in gradient_of:
                    self.same(value, gradient_of[value])
        return self

    def fix(self, *factors: Factors, via: str = "") -> None:
        if self._forward:
            for run in factors:
                self.atoms.fix(run, self.index)

    def bear(self, *factors: Factors) -> None:
        if self._forward:
            self.born.extend(factors)

    def contract(self, factors: Factors, *, defer: bool = False) -> None:
        if not defer:
            self.fix(factors)  # what follows is rarely linear in the sum (a norm, the scores of an attention)
        self.contracted[self.index] = self.atoms.leaves(factors)

    def is_weight(self, value: int) -> bool:
        return value in self.weights

    def serves_only(self, value: int, name: str) -> bool:
        readers = [op for op in self.block.ops if op.phase == "forward" and value in op.inputs]
        return bool(readers) and all(op.name == name for op in readers)

    @property
    def _forward(self) -> bool:
        return self.block.ops[self.index].phase == "forward"
