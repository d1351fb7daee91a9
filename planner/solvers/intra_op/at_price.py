"""A problem seen from a few of its nodes, at any price of what is held.

Where memory counts at one time point alone, ``cost + price * held`` is a sum over nodes and edges again. Nodes that
hold the same under every strategy are folded once, for all prices; what is left is eliminated at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.solvers.intra_op.eliminate import eliminate
from planner.solvers.intra_op.network import Network, edges_of, network
from planner.solvers.intra_op.problem import Costs, Problem, Usage
from planner.solvers.intra_op.projection import MOST_ENTRIES, Projection, too_wide
from planner.solvers.intra_op.reduce import fold, sweep

AT_ONCE = 1 << 16
"""Entries of the largest table that is made without comparing strategies first."""


@dataclass(frozen=True)
class Priced:
    """A problem of one time point in which nodes that hold nothing are folded."""

    keep: tuple[int, ...]
    _net: Network

    def at(self, price: float) -> Projection:
        """The projection (`planner.solvers.intra_op.project`) of ``cost + price * held``.

        What a node holds counts from the least of its strategies.

        Raises:
            UsageError: the graph is so wide that too large a table would be needed.
        """
        net = self._net
        unary = {i: net.costs(i) + price * self._held(i) for i in net.nodes}
        done = eliminate(unary, edges_of(net), keep=self.keep, entries=AT_ONCE)
        if done is None:
            net = net.fork()
            for i in net.nodes:
                net.unary[i], net.memory[i] = unary[i], ()
                net.touch(i)
            sweep(net, frozenset(self.keep))
            left = {i: net.costs(i) for i in net.nodes}
            done = eliminate(left, edges_of(net), keep=self.keep, entries=MOST_ENTRIES)
        if done is None:
            raise too_wide(len(net.nodes), len(self.keep))
        return Projection(self.keep, done.table + net.constant, done, net)

    def _held(self, i: int) -> Costs:
        pieces = self._net.pieces(i)
        return np.zeros(len(self._net.costs(i))) if pieces is None else pieces.amounts[0]


def priced(problem: Problem, held: Sequence[Costs], keep: Sequence[int]) -> Priced:
    """Fold what no price changes.

    Args:
        held: per node, by strategy, what it holds at the one time point.
        keep: nodes that stay as they are.
    """
    point = tuple((Usage(0, 1, amounts),) for amounts in held)
    net = network(replace(problem, usages=point), np.inf)
    fold(net, frozenset(keep))
    return Priced(tuple(keep), net)
