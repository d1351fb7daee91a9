"""Branch and bound: reduce, bound, forbid, and split a node's strategies where that leaves something.

Best bound first, so the least bound of what is open is a bound of the whole at any time. A network without memory that
is narrow enough is finished by elimination. Only choices that improve by `Best.step` are looked for: whole numbers
differ by one, others by a part in 10^12.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.solvers.intra_op.eliminate import eliminate
from planner.solvers.intra_op.lagrange import forbid_above, lower_bound
from planner.solvers.intra_op.milp import Model
from planner.solvers.intra_op.network import ContradictionError, Network, cost_of, edges_of, fits
from planner.solvers.intra_op.reduce import reduce

ELIMINATION_ENTRIES = 1 << 22
"""Largest table that elimination may make."""
WORTH_REPEATING = 0.2
"""Share of values that a bound must forbid for the smaller network to be bounded again before a split."""


@dataclass
class Best:
    """The best choice of a network that is known, over its own nodes."""

    net: Network
    step: float
    """A choice must be cheaper by this, in parts of the cost where costs are not whole numbers."""
    whole: bool
    cost: float = np.inf
    choice: Mapping[int, int] | None = None
    work: int = 0
    """Pairs of strategies in the LPs that were solved for it: a measure of effort that needs no clock."""

    @property
    def cutoff(self) -> float:
        """Cost that a choice must not exceed to be worth finding."""
        if self.choice is None:
            return np.inf
        return self.cost - (self.step if self.whole else self.step * abs(self.cost))

    def offer(self, choice: Mapping[int, int]) -> bool:
        """Take a choice when it is feasible and better."""
        cost = cost_of(self.net, choice)
        if cost >= self.cost or not fits(self.net, choice):
            return False
        self.cost, self.choice = cost, dict(choice)
        return True


@dataclass(frozen=True)
class Budget:
    """When to stop."""

    until: float
    """Of `time.monotonic`."""
    splits: int

    @property
    def left(self) -> float:
        return self.until - time.monotonic()


class Tree:
    """What is open of a network: pieces with their bounds, the least first."""

    def __init__(self, net: Network, best: Best) -> None:
        """``net`` is a fork of the network of ``best`` without records."""
        self._best = best
        self._waiting: list[tuple[float, int, Network]] = [(-np.inf, 0, net)]
        self._made = 0

    def raise_to(self, bound: float) -> None:
        """Take in a bound of the whole network from elsewhere."""
        self._waiting = [(max(known, bound), order, net) for known, order, net in self._waiting]
        heapq.heapify(self._waiting)

    @property
    def bound(self) -> float:
        """What no choice costs less than, unless it is no better than the best known; infinity when there is none."""
        return min(self._waiting[0][0], self._best.cost) if self._waiting else self._best.cost

    @property
    def closed(self) -> bool:
        return not self._waiting or self._waiting[0][0] > self._best.cutoff

    def grow(self, budget: Budget, *, mip_s: float = 0.0) -> None:
        """Split pieces until all are closed or the budget is spent; HiGHS searches the first for so many seconds."""
        splits = 0
        while not self.closed and budget.left > 0 and splits < budget.splits:
            known, _, node = heapq.heappop(self._waiting)
            try:
                found = _bounded(node, self._best, budget, mip_s)
            except ContradictionError:
                continue
            mip_s = 0.0
            if found is None:
                continue
            value, where, shares = found
            splits += 1
            alone = np.arange(len(shares)) == shares.argmax()
            for side in (alone, ~alone):
                child = node.fork()
                child.forbid(where, ~side)
                self._made += 1
                heapq.heappush(self._waiting, (max(known, value), self._made, child))


def _bounded(
    net: Network, best: Best, budget: Budget, mip_s: float
) -> tuple[float, int, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] | None:
    """A network's bound and the node to split with its shares; ``None`` when it holds nothing better any more."""
    while True:
        reduce(net)
        if finish(net, best):
            return None
        model = Model(net)
        best.work += model.num_pairs
        bound = lower_bound(net, model.relax(budget.left))
        best.offer(net.decode(model.rounded()))
        if bound.value > best.cutoff:
            return None
        shares = model.shares()
        before = sum(len(net.costs(i)) for i in shares)
        if mip_s > 0:
            found = model.whole(min(mip_s, budget.left))
            mip_s = 0.0
            if found is not None:
                best.offer(net.decode(found))
            if bound.value > best.cutoff:
                return None
        forbid_above(net, bound, best.cutoff)
        left = sum(int((net.costs(i) < np.inf).sum()) for i in shares if net.unary[i] is not None)
        if left > (1 - WORTH_REPEATING) * before or budget.left <= 0:
            open_nodes = [i for i in net.nodes if len(net.costs(i)) > 1]
            where = min(open_nodes, key=lambda i: abs(float(shares[i].max()) - 0.5))
            return bound.value, where, shares[where]


def finish(net: Network, best: Best) -> bool:
    """Solve a reduced network of which nothing is left, or no memory and a narrow graph; whether it was solved."""
    if any(net.memory[i] for i in net.nodes):
        return False
    done = eliminate({i: net.costs(i) for i in net.nodes}, edges_of(net), entries=ELIMINATION_ENTRIES)
    if done is None:
        return False
    if np.isfinite(done.table):
        best.offer(net.decode(done.decode(())))
    return True


def without_records(net: Network) -> Network:
    """A fork whose choices are over the nodes that are left in ``net``."""
    return replace(net.fork(), records=[])
