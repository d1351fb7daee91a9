"""The trade-off between cost and peak memory: `pareto`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.errors import NoPlanError
from planner.solvers.intra_op.eliminate import eliminate
from planner.solvers.intra_op.milp import Model
from planner.solvers.intra_op.network import ContradictionError, Network, edges_of, network
from planner.solvers.intra_op.problem import Problem, Solution
from planner.solvers.intra_op.reduce import reduce

ENTRIES = 1 << 22
BELOW = 1e-9
"""Share of the weighted sum by which a point must lie under a line to count as under it."""


@dataclass(frozen=True)
class _Sweep:
    """A problem, reduced without a limit, under weights of cost and peak."""

    problem: Problem
    net: Network

    def best(self, cost_weight: float, peak_weight: float) -> Solution:
        """The choice of least ``cost_weight * cost + peak_weight * peak``."""
        net = self.net
        choice = None
        one_point = len(net.held) <= 1 or not any(net.memory[i] for i in net.nodes)
        if one_point or peak_weight == 0:
            unary = {i: net.costs(i) * cost_weight if cost_weight else _finite(net.costs(i)) for i in net.nodes}
            if peak_weight:
                for i in net.nodes:
                    pieces = net.pieces(i)
                    if pieces is not None:
                        unary[i] = unary[i] + peak_weight * pieces.amounts[0]
            edges = ((i, j, table * cost_weight if cost_weight else _finite(table)) for i, j, table in edges_of(net))
            done = eliminate(unary, edges, entries=ENTRIES)
            choice = None if done is None else done.decode(())
        if choice is None:
            choice = Model(net, cost_weight=cost_weight, peak_weight=peak_weight).whole(np.inf)
            assert choice is not None
        full = net.decode(choice)
        made = tuple(full[i] for i in range(self.problem.num_nodes))
        cost = self.problem.cost(made)
        return Solution(made, cost, cost, self.problem.peak(made))


def pareto(problem: Problem) -> tuple[Solution, ...]:
    """Choices from fastest to leanest; the problem's limit is ignored.

    The first has the least cost of all, the last the least peak of all, and between them stands every corner of the
    lower convex hull of all choices' (cost, peak): what minimises ``cost + weight * peak`` for some weight. Costs rise
    and peaks fall strictly from one to the next, and no choice at all has both no more cost and no more peak than one
    of these, and less of one. Choices above the hull are not found. Each is found by exact elimination where one time
    point decides the peak (all others hold no more under any choice) and the graph is narrow, else by HiGHS to its
    tolerances (10^-6). ``bound`` is the cost: no choice of that peak or less costs less.

    Raises:
        NoPlanError: every choice is forbidden.
    """
    try:
        net = network(problem, np.inf)
        reduce(net)
    except ContradictionError:
        raise NoPlanError("no choice of strategies is feasible: each has a forbidden strategy or pair.") from None
    sweep = _Sweep(problem, net)
    fastest, leanest = sweep.best(1.0, 0.0), sweep.best(0.0, 1.0)
    if not np.isfinite(fastest.cost):
        raise NoPlanError("no choice of strategies is feasible: each has a forbidden strategy or pair.")
    found = {(s.cost, s.peak): s for s in (fastest, leanest)}
    waiting = [(fastest, leanest)]
    while waiting:
        fast, lean = waiting.pop()
        if lean.cost <= fast.cost or fast.peak <= lean.peak:
            continue
        across, down = lean.cost - fast.cost, fast.peak - lean.peak
        scale = max(across, down)
        between = sweep.best(down / scale, across / scale)
        line = fast.cost * down + fast.peak * across
        under = line - (between.cost * down + between.peak * across)
        if under > BELOW * abs(line):
            found[between.cost, between.peak] = between
            waiting += [(fast, between), (between, lean)]
    return _hull(list(found.values()))


def _hull(points: list[Solution]) -> tuple[Solution, ...]:
    """Those that no other dominates."""
    kept: list[Solution] = []
    for point in sorted(points, key=lambda s: (s.cost, s.peak)):
        if not kept or point.peak < kept[-1].peak:
            kept.append(point)
    return tuple(kept)


def _finite(
    costs: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What is forbidden, without what it costs."""
    return np.where(np.isfinite(costs), 0.0, np.inf)
