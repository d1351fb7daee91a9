"""One strategy per node at least cost, within a memory limit over time: exact, with a proof or an honest bound.

    minimise    sum_i c_i(x_i) + sum_ij t_ij(x_i, x_j)
    subject to  sum_i usage_i(x_i, t) <= limit at every time point t

`solve` (`solving.solve`) goes through these and stops at the first that closes.

**Elimination** (`eliminate.eliminate`). Where no memory binds, a node leaves a table over its neighbours,
``m(x_N) = min_u [c(u) + sum t(u, x_N)]``, the smallest table first; the argmins lead back. Some 0.1 ms per node of
blocks and chains. `projection.project` stops at a few kept nodes.

**Time** (`pieces.kept_times`, `reduce.reduce`). Only points at which something begins and after which something ends
can hold the most; a point leaves when its most is within the limit or its neighbour holds no less. The least that each
node keeps is held under every choice; a value that does not fit beside that is dropped.

**Reductions** (`reduce.reduce`). Parallel edges are one, and a table ``f(u) + g(w)`` is none. A node without memory and
with at most two neighbours folds into them (min-sum). A node of which every value of a neighbour allows one strategy is
contracted into it, with edges and memory. A live node of two neighbours folds where its cheapest strategy is its
leanest and what it keeps follows from one of them.

**Dominance** (`dominance.drop_dominated`). ``u`` replaces ``v`` where it keeps no more in every piece of time and
``c(u) - c(v) + sum_j max_w [t_j(u, w) - t_j(v, w)] <= 0``; the same for pairs of one edge.

**The LP** (`milp.Model`). ``x_iu`` sum to one per node, ``y_ij,uw`` over finite pairs have the marginals
``sum_w y = x_iu`` and ``sum_u y = x_jw``, memory rows ``sum usage x <= limit`` are added once violated.

**The bound** (`lagrange.lower_bound`). Any multipliers ``lam_t >= 0`` and messages ``m_ij`` give

    L = constant + sum_i min theta_i + sum_ij min theta_ij - sum_t lam_t (limit - held_t),

in our own arithmetic, lowered by its rounding, and with it reduced costs that forbid values and pairs
(`lagrange.forbid_above`). Multipliers are the LP's duals, or, where it is too large, those of message passing and
subgradients (`messages.Ascent`).

**Branch and bound** (`branch.Tree`). Reduce, bound, forbid, split; best bound first. What is left without memory is
eliminated, so no proof rests on the arithmetic of another solver.

**Neighbourhoods** (`neighbourhood`). `dive` gives nodes their locally best values one after another; `improve` solves
windows, connected pieces while all else is kept, by branch and bound for anything better.

**Exchange** (`exchange`, `ordering`). A few nodes of many neighbours keep their values, so all others can be eliminated
at prices of memory; of what changes, the pieces that no edge joins are taken while they fit: 0.3 s for 5,000 nodes.

`trade_off.pareto` is the hull of (cost, peak) over all choices.
"""

from __future__ import annotations

from planner.solvers.intra_op.at_price import Priced as Priced
from planner.solvers.intra_op.at_price import priced as priced
from planner.solvers.intra_op.problem import Problem as Problem
from planner.solvers.intra_op.problem import Solution as Solution
from planner.solvers.intra_op.problem import Usage as Usage
from planner.solvers.intra_op.projection import Projection as Projection
from planner.solvers.intra_op.projection import project as project
from planner.solvers.intra_op.solving import solve as solve
from planner.solvers.intra_op.trade_off import pareto as pareto
