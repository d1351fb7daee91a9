"""What a rule says of one operation: how the dims of its tensors relate, and what it does to each.

Rules (`planner.layouts.rules`) speak to a `Relations`; who listens decides what is made of it. `planner.layouts.flow`
relates the dims of a whole block, `planner.layouts.strategies` those of one operation by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from planner.graph import Block, Op
from planner.layouts.atoms import Atoms, Factors
from planner.layouts.placements import Shape

Dims = list[Factors]
"""Atoms of every dim of a tensor."""


@dataclass
class Relations:
    """Atoms of values, and statements about operations; the base of those who listen to rules."""

    block: Block
    shapes: Sequence[Shape]
    """Of the block's values."""
    atoms: Atoms = field(default_factory=Atoms)
    dims: dict[int, Dims] = field(default_factory=dict)
    index: int = 0
    """The operation being related."""
    alone: ClassVar[bool] = False
    """Whether an operation is related by itself, not to those around it."""

    def of(self, value: int) -> Dims:
        """Atoms of a value; one that comes from outside starts with an atom of its own per dim."""
        if value not in self.dims:
            self.dims[value] = self.fresh(value)
        return self.dims[value]

    def fresh(self, value: int) -> Dims:
        """Atoms of its own for every dim of a value."""
        return [self.atoms.new(size) for size in self.shapes[value]]

    def unify(self, a: Factors, b: Factors) -> None:
        """Two dims are the same elements in the same order."""
        self.atoms.unify(a, b, self.index)

    def same(self, a: int, b: int) -> None:
        """Two values lie alike."""
        for x, y in zip(self.of(a), self.of(b), strict=True):
            self.unify(x, y)

    def fix(self, *factors: Factors, via: str = "") -> None:
        """The operation needs these dims whole (it normalises over them, sorts along them, ...), unless by an
        implementation that communicates, named by ``via``."""
        raise NotImplementedError

    def share(self, factors: Factors, via: str) -> None:
        """A dim may be sharded, by the implementation that ``via`` names."""

    def bear(self, *factors: Factors) -> None:
        """Dims that are made of whole arguments (sorted, cut, ...): nothing could hold a shard of them."""
        raise NotImplementedError

    def contract(self, factors: Factors, *, defer: bool = False) -> None:
        """The operation sums over a dim: where that is sharded, its results are partial sums.

        Args:
            defer: whether what follows in a block is commonly linear as well, so that the sum can wait.
        """
        raise NotImplementedError

    def linear(self, *values: int) -> None:
        """The operation is linear in these arguments together, the others held."""

    def pair(self, queries: Factors, keys: Factors, holders: Sequence[int], *, via: str) -> None:
        """Two dims of one size can be sharded together by an implementation; ``holders`` are sharded along ``keys``."""

    def is_weight(self, value: int) -> bool:
        """Whether a value is a parameter or a mere copy of one."""
        return False

    def serves_only(self, value: int, name: str) -> bool:
        """Whether all that reads a value are operations of one name."""
        return False


Rule = Callable[[Relations, Op], list[Dims]]
"""Gives the atoms of an operation's results."""


def whole(relations: Relations, op: Op) -> list[Dims]:
    """The rule of what no rule knows: arguments are needed whole, results are made of whole ones."""
    for value in op.inputs:
        relations.fix(*relations.of(value))
    results = [relations.fresh(value) for value in op.outputs]
    for dims in results:
        relations.bear(*dims)
    return results
