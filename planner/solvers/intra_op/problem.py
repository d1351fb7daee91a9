"""The problem: one strategy per node, prices on nodes and edges, memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
"""One number per strategy of a node, or a table over the strategies of two; infinity forbids."""


class Usage(NamedTuple):
    """What a node keeps while it lives, by strategy."""

    start: int
    end: int
    """Time points ``start <= t < end``."""
    amounts: Costs


@dataclass(frozen=True)
class Problem:
    """Choose one strategy per node so that all costs sum to least and no time point holds more than ``limit``."""

    costs: tuple[Costs, ...]
    """Per node, by strategy."""
    edges: tuple[tuple[int, int], ...]
    """Pairs of nodes; one pair may come several times."""
    edge_costs: tuple[Costs, ...]
    """Per edge: ``[strategy of the first, strategy of the second]``."""
    usages: tuple[tuple[Usage, ...], ...]
    """Per node; none for a node that keeps nothing."""
    limit: float | None = None

    @property
    def num_nodes(self) -> int:
        return len(self.costs)

    def cost(self, choice: Sequence[int]) -> float:
        """Sum of the nodes' and the edges' costs under a choice."""
        nodes = sum(float(costs[s]) for costs, s in zip(self.costs, choice, strict=True))
        pairs = zip(self.edges, self.edge_costs, strict=True)
        return nodes + sum(float(table[choice[i], choice[j]]) for (i, j), table in pairs)

    def peak(self, choice: Sequence[int]) -> float:
        """Most that any time point holds under a choice."""
        changes: dict[int, float] = {}
        for usages, s in zip(self.usages, choice, strict=True):
            for usage in usages:
                if usage.end > usage.start:
                    changes[usage.start] = changes.get(usage.start, 0.0) + float(usage.amounts[s])
                    changes[usage.end] = changes.get(usage.end, 0.0) - float(usage.amounts[s])
        return float(max(np.cumsum([changes[t] for t in sorted(changes)]), default=0.0))


@dataclass(frozen=True)
class Solution:
    """A choice with its proof."""

    choice: tuple[int, ...]
    """Strategy per node."""
    cost: float
    bound: float
    """No feasible choice costs less."""
    peak: float
    """Most that any time point holds."""

    @property
    def gap(self) -> float:
        """``(cost - bound) / |cost|``: 0 is proven best."""
        return (self.cost - self.bound) / abs(self.cost) if self.cost > self.bound else 0.0
