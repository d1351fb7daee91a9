"""The factors of one operation: its rule, run on it alone.

Two dims that merely coincide elsewhere (query and key length of self-attention) are different factors here. Every dim
of an argument starts as the run of atoms that the block's flow found for it, so that a flattened ``[batch * seq]`` or a
fused QKV offers shards of each of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.graph import Block
from planner.layouts.atoms import Factors
from planner.layouts.placements import Shape
from planner.layouts.relations import Dims, Relations

Parts = Callable[[int], Sequence[Sequence[int]]]
"""Value -> per dim, the sizes of its parts, outer to inner."""


class OpFactors(Relations):
    """Listens to the rules of one operation, or of a few that follow each other."""

    alone = True

    def __init__(self, block: Block, shapes: Sequence[Shape], parts: Parts) -> None:
        super().__init__(block, shapes)
        self._parts = parts
        self._contracted: list[Factors] = []
        self._shared: list[tuple[Factors, str]] = []
        self._paired: list[tuple[Factors, Factors, frozenset[int], str]] = []
        self.linear_in: list[tuple[int, ...]] = []
        """Arguments in which the operation is linear together."""

    def fresh(self, value: int) -> Dims:
        return [tuple(a for size in sizes for a in self.atoms.new(size)) for sizes in self._parts(value)]

    def fix(self, *factors: Factors, via: str = "") -> None:
        for run in factors:
            if via:
                self._shared.append((run, via))
            else:
                self.atoms.fix(run, self.index)

    def bear(self, *factors: Factors) -> None:
        self.fix(*factors)

    def share(self, factors: Factors, via: str) -> None:
        self._shared.append((factors, via))

    def contract(self, factors: Factors, *, defer: bool = False) -> None:
        self._contracted.append(factors)

    def linear(self, *values: int) -> None:
        self.linear_in.append(values)

    def pair(self, queries: Factors, keys: Factors, holders: Sequence[int], *, via: str) -> None:
        self._paired.append((queries, keys, frozenset(holders), via))

    def contracted(self) -> frozenset[int]:
        """Leaf atoms that are summed over."""
        return frozenset(leaf for run in self._contracted for leaf in self.atoms.leaves(run))

    def implementations(self) -> dict[int, str]:
        """Leaf atom -> name of the only implementation that can shard it."""
        return {leaf: via for run, via in self._shared for leaf in self.atoms.leaves(run)}

    def pairs(self) -> list[tuple[int, int, frozenset[int], str]]:
        """Leaf atoms that an implementation shards together, who holds the second, and its name."""
        return [
            (a, b, holders, via)
            for queries, keys, holders, via in self._paired
            for a, b in zip(self.atoms.leaves(queries), self.atoms.leaves(keys), strict=False)
            if self.atoms.size(a) == self.atoms.size(b)
        ]
