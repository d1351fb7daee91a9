"""Lower bounds from multipliers, in our own arithmetic, and what a bound forbids.

For multipliers ``lam_t >= 0`` on the memory rows and messages ``m_ij(u)`` on the edges' marginals,

    theta_i(u)     = c_i(u) + sum_j m_ij(u) + sum_t lam_t usage_it(u)
    theta_ij(u, w) = t_ij(u, w) - m_ij(u) - m_ji(w)
    L = constant + sum_i min theta_i + sum_ij min theta_ij - sum_t lam_t (limit - held_t)

is no more than the cost of any choice within the limit, whatever the multipliers: where they come from needs no trust.
Choosing ``u`` costs at least ``L`` plus its reduced cost ``theta_i(u) - min theta_i + sum_j (min_w theta_ij(u, w) - min
theta_ij)``. The value is lowered by what rounding can have added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import fsum

import numpy as np

from planner.solvers.intra_op.network import Network
from planner.solvers.intra_op.pieces import Profile
from planner.solvers.intra_op.problem import Costs

ROUNDING = 2.0**-53


@dataclass(frozen=True)
class Multipliers:
    memory: Profile
    """Per time point, none negative."""
    messages: Mapping[tuple[int, int], Costs]
    """``[i, j]``: what the edge to ``j`` moves to node ``i``, by strategy of ``i``; absent is nothing."""


@dataclass(frozen=True)
class Bound:
    value: float
    """No choice within the limit costs less."""
    reduced: Mapping[int, Costs]
    """Per node and strategy: what choosing it adds to the value, at least."""
    slack: Mapping[tuple[int, int], Costs]
    """Per edge, ``i < j``: ``theta_ij - min theta_ij``."""


def reparametrised(net: Network, multipliers: Multipliers) -> Network:
    """A fork, without records, of costs ``theta``: the same choices at costs that tell more locally."""
    made = replace(net.fork(), records=[], constant=0.0)
    total = np.append(0.0, multipliers.memory.cumsum())
    for i in net.nodes:
        costs = net.costs(i)
        pieces = net.pieces(i)
        if pieces is not None:
            costs = costs + (total[pieces.ends] - total[pieces.starts]) @ pieces.amounts
        for j, table in net.tables[i].items():
            here = multipliers.messages.get((i, j), 0.0)
            costs = costs + here
            if i < j:
                there = multipliers.messages.get((j, i), 0.0)
                left = table - np.reshape(here, (-1, 1)) - np.reshape(there, (1, -1))
                made.tables[i][j], made.tables[j][i] = left, left.T
        made.unary[i] = costs
    return made


def lower_bound(net: Network, multipliers: Multipliers) -> Bound:
    """The bound of the module docstring."""
    total = np.append(0.0, multipliers.memory.cumsum())
    terms = [net.constant, *(-multipliers.memory * (net.limit - net.held))] if len(net.held) else [net.constant]
    theta = {}
    size = [abs(term) for term in terms]
    operations = 8
    for i in net.nodes:
        costs = net.costs(i)
        magnitude = np.abs(costs)
        pieces = net.pieces(i)
        if pieces is not None:
            price = (total[pieces.ends] - total[pieces.starts]) @ pieces.amounts
            # The cumulated sum differs from the sum of the row's own terms by its rounding alone.
            costs, magnitude = costs + price, magnitude + price + total[-1] * pieces.amounts.max(axis=0)
        for j in net.tables[i]:
            message = multipliers.messages.get((i, j))
            if message is not None:
                costs, magnitude = costs + message, magnitude + np.abs(message)
        theta[i] = costs
        operations = max(operations, len(net.tables[i]) + len(net.held) + 8)
        size.append(float(magnitude[costs < np.inf].max(initial=0.0)))
        terms.append(float(costs.min()))
    reduced = {i: costs - costs.min() for i, costs in theta.items()}
    slack = {}
    for i, row in enumerate(net.tables):
        for j, table in row.items():
            if j < i:
                continue
            here, there = multipliers.messages.get((i, j)), multipliers.messages.get((j, i))
            left = table
            size.append(float(np.abs(table[table < np.inf]).max()))
            if here is not None:
                left = left - here[:, None]
                size.append(float(np.abs(here).max()))
            if there is not None:
                left = left - there[None, :]
                size.append(float(np.abs(there).max()))
            terms.append(float(left.min()))
            slack[i, j] = left = left - left.min()
            reduced[i] = reduced[i] + left.min(axis=1)
            reduced[j] = reduced[j] + left.min(axis=0)
    return Bound(fsum(terms) - operations * ROUNDING * fsum(size), reduced, slack)


def forbid_above(net: Network, bound: Bound, cutoff: float) -> int:
    """Forbid values and pairs that no choice of cost ``cutoff`` or less can hold; how many."""
    room = cutoff - bound.value
    dropped = 0
    for (i, j), slack in bound.slack.items():
        elsewhere_i = bound.reduced[i] - slack.min(axis=1)
        elsewhere_j = bound.reduced[j] - slack.min(axis=0)
        table = net.tables[i][j]
        over = (slack + elsewhere_i[:, None] + elsewhere_j[None, :] > room) & (table < np.inf)
        count = int(over.sum())
        if count:
            dropped += count
            table = np.where(over, np.inf, table)
            net.tables[i][j], net.tables[j][i] = table, table.T
    for i, reduced in bound.reduced.items():
        over = reduced > room
        if over.any():
            net.forbid(i, over)
    for i, j in bound.slack:
        net.set_table(i, j, net.tables[i][j])
    return dropped
