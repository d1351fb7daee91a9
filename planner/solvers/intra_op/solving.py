"""`solve`: from a problem to a choice with its proof."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from planner.errors import NoPlanError
from planner.solvers.intra_op.branch import Best, Budget, Tree, finish, without_records
from planner.solvers.intra_op.eliminate import eliminate
from planner.solvers.intra_op.exchange import exchange
from planner.solvers.intra_op.lagrange import lower_bound
from planner.solvers.intra_op.messages import Ascent
from planner.solvers.intra_op.neighbourhood import dive, improve
from planner.solvers.intra_op.network import ContradictionError, Network, edges_of, network
from planner.solvers.intra_op.problem import Problem, Solution
from planner.solvers.intra_op.reduce import reduce

DIRECT_NODES = 2000
"""Largest problem that is eliminated as it is, before any reduction."""
DIRECT_ENTRIES = 1_000_000
STEP = 1e-12
"""Relative improvement that is not looked for where costs are not whole numbers."""
FIRST_SPLITS, FIRST_SHARE = 40, 0.25
"""Splits, and share of the time, before neighbourhoods are searched."""
MIP_SHARE = 0.1
"""Of the time, for HiGHS' own branch and bound, whose heuristics find good choices of small networks at once."""
LP_PAIRS = 400_000
"""Largest LP, in pairs of strategies; larger networks are bounded by messages."""
ASCENT_SHARE, SMALL_ASCENT_SHARE = 0.2, 0.05
"""Of the time, for messages: of large networks, whose bound and first choice they make, and of others."""
EXCHANGE_PATIENCE = 0.25
"""Rounds of exchange without an improvement before windows are searched, per window."""
FIRST_STALL = 100
"""Windows without an improvement before the tree grows again; twice as many each time."""
EXACT = 2.0**53


def solve(problem: Problem, *, time_limit_s: float = 60.0) -> Solution:
    """The choice of least cost within the limit, or the best found in time, with a bound that holds either way.

    ``gap`` is 0 when the choice is proven best. Costs that are not whole numbers are compared to a part in 10^12. What
    comes out does not depend on timing when the problem closes within the time.

    Args:
        time_limit_s: seconds after which no further step begins.
    Raises:
        NoPlanError: no choice has a finite cost and keeps within the limit; or none was found in time, and it says so.
    """
    until = time.monotonic() + time_limit_s
    if problem.num_nodes <= DIRECT_NODES:
        choice = _least_cost(problem)
        if choice is not None and (problem.limit is None or problem.peak(choice) <= problem.limit):
            return _solution(problem, choice)
    try:
        net = network(problem, problem.limit)
        reduce(net)
    except ContradictionError:
        raise _infeasible(problem) from None
    best = Best(net, *((1.0, True) if _whole(problem) else (STEP, False)))
    bound = np.inf if finish(net, best) else _search(best, until)
    if best.choice is None:
        raise _infeasible(problem) if bound == np.inf else _not_found(problem, time_limit_s)
    return _solution(problem, net.decode(best.choice), bound)


def _search(best: Best, until: float) -> float:
    """Find the best choice of a reduced network, or a good one and a bound; the bound is infinite when none exists."""
    net = best.net
    tree = Tree(without_records(net), best)
    large = _num_pairs(net) > LP_PAIRS
    if not large:
        left = until - time.monotonic()
        tree.grow(Budget(until - (1 - FIRST_SHARE) * left, FIRST_SPLITS), mip_s=MIP_SHARE * left)
        if tree.closed:
            return tree.bound
    now = time.monotonic()
    multipliers = Ascent(net).climb(now + (ASCENT_SHARE if large else SMALL_ASCENT_SHARE) * (until - now))
    tree.raise_to(lower_bound(net, multipliers).value)
    choice = dive(net, multipliers)
    if choice is not None:
        best.offer(choice)
    random = np.random.default_rng(0)
    stall, prices = FIRST_STALL, multipliers.memory
    while not tree.closed and time.monotonic() < until and not (large and best.choice is None):
        if best.choice is not None:
            if large:  # a small network's time is better spent on windows and the tree
                prices = exchange(best, until, int(EXCHANGE_PATIENCE * stall), prices, random)
            improve(best, Budget(until, 0), stall, multipliers, random)
        if not large:
            tree.grow(Budget(until, stall))
        stall *= 2
    return tree.bound


def _num_pairs(net: Network) -> int:
    return sum(int((table < np.inf).sum()) for _, _, table in edges_of(net))


def _least_cost(problem: Problem) -> tuple[int, ...] | None:
    """The choice of least cost without a limit, where elimination is cheap.

    Raises:
        NoPlanError: every choice is forbidden.
    """
    edges = ((i, j, table) for (i, j), table in zip(problem.edges, problem.edge_costs, strict=True))
    done = eliminate(dict(enumerate(problem.costs)), edges, entries=DIRECT_ENTRIES)
    if done is None:
        return None
    if not np.isfinite(done.table):
        raise _infeasible(problem)
    choice = done.decode(())
    return tuple(choice[i] for i in range(problem.num_nodes))


def _solution(problem: Problem, choice: Mapping[int, int] | tuple[int, ...], bound: float = np.inf) -> Solution:
    made = tuple(choice[i] for i in range(problem.num_nodes))
    cost = problem.cost(made)
    return Solution(made, cost, min(cost, bound), problem.peak(made))


def _whole(problem: Problem) -> bool:
    """Whether all finite costs are whole numbers that doubles add exactly."""
    total = 0.0
    for row in (*problem.costs, *problem.edge_costs):
        finite = row[np.isfinite(row)]
        if (finite != np.floor(finite)).any():
            return False
        total = max(total, float(np.abs(finite).max(initial=0.0)))
    return total < EXACT


def _infeasible(problem: Problem) -> NoPlanError:
    return NoPlanError(f"no choice of strategies is feasible: {_why(problem)}")


def _not_found(problem: Problem, seconds: float) -> NoPlanError:
    return NoPlanError(
        f"no feasible choice of strategies was found in {seconds:g} s, and none was excluded: {_why(problem)}"
    )


def _why(problem: Problem) -> str:
    if problem.limit is None:
        return "every choice has a forbidden strategy or pair."
    least = least_peak(problem)
    return f"the limit is {problem.limit:g}, and the least that any choice holds at its peak is {least:g} or more."


def least_peak(problem: Problem) -> float:
    """A bound from below on every choice's peak: the most, over time, of the sum of each node's least."""
    net = network(problem, np.inf)
    return float(net.held.max(initial=0.0))
