"""A problem seen from a few of its nodes: least cost by their strategies, and the choice behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.errors import UsageError
from planner.solvers.intra_op.eliminate import Eliminated, eliminate
from planner.solvers.intra_op.network import ContradictionError, Network, edges_of, network
from planner.solvers.intra_op.problem import Costs, Problem
from planner.solvers.intra_op.reduce import reduce

DIRECT_ENTRIES = 1_000_000
MOST_ENTRIES = 1 << 24


@dataclass(frozen=True)
class Projection:
    """Every node but ``keep`` is eliminated."""

    keep: tuple[int, ...]
    table: Costs
    """Least cost of all nodes and edges, one axis per kept node; infinity where nothing is feasible."""
    _eliminated: Eliminated
    _reduced: Network | None

    def decode(self, kept_choice: Sequence[int]) -> tuple[int, ...]:
        """The strategies of all nodes at which ``table[kept_choice]`` is reached."""
        choice = self._eliminated.decode(kept_choice)
        if self._reduced is not None:
            choice = self._reduced.decode(choice)
        return tuple(choice[i] for i in range(len(choice)))


def project(problem: Problem, keep: Sequence[int]) -> Projection:
    """Eliminate all nodes but ``keep`` exactly; memory is ignored.

    ``table[s] = min {cost(x) : x[keep[a]] = s[a]}``. Parallel edges add up.

    Raises:
        UsageError: nodes that are none or given twice, or a graph so wide that too large a table would be needed.
    """
    kept = tuple(keep)
    if len(set(kept)) != len(kept) or not all(0 <= i < problem.num_nodes for i in kept):
        raise UsageError(f"nodes to keep are {kept}: expected different nodes of 0 to {problem.num_nodes - 1}.")
    edges = ((i, j, table) for (i, j), table in zip(problem.edges, problem.edge_costs, strict=True))
    done = eliminate(dict(enumerate(problem.costs)), edges, keep=kept, entries=DIRECT_ENTRIES)
    if done is not None:
        return Projection(kept, done.table, done, None)
    net = network(problem, None)
    try:
        reduce(net, pinned=frozenset(kept))
    except ContradictionError:
        nothing = np.full([len(problem.costs[i]) for i in kept], np.inf)
        others = tuple((i, (), np.array(0)) for i in range(problem.num_nodes) if i not in kept)
        return Projection(kept, nothing, Eliminated(kept, nothing, others), None)
    done = eliminate({i: net.costs(i) for i in net.nodes}, edges_of(net), keep=kept, entries=MOST_ENTRIES)
    if done is None:
        raise too_wide(problem.num_nodes, len(kept))
    return Projection(kept, done.table + net.constant, done, net)


def too_wide(num_nodes: int, num_kept: int) -> UsageError:
    """What to say when elimination fails."""
    return UsageError(
        f"a graph of {num_nodes} nodes cannot be seen from {num_kept} of them: elimination needs a table of more than "
        f"{MOST_ENTRIES} entries. Keep fewer nodes, or solve it whole."
    )
