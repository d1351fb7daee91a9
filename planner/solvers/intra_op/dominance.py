"""Values and pairs that some optimum does without.

Strategy ``u`` dominates ``v`` when it keeps no more in every piece of time and

    c(u) - c(v) + sum_j max_w [t_j(u, w) - t_j(v, w)] <= 0,

the sum over neighbours: whatever they choose, changing ``v`` into ``u`` costs nothing. The pair ``(v, w)`` of an edge
is dominated when that holds with ``w`` in place of the maximum over that edge. Of equals the first stays.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from planner.solvers.intra_op.network import Network
from planner.solvers.intra_op.pieces import Pieces
from planner.solvers.intra_op.problem import Costs

ENTRIES = 1 << 21
"""Largest comparison that is made in one piece; pairs are compared only up to it."""


def drop_dominated(net: Network, i: int) -> bool:
    """Drop dominated values of a node, or else dominated pairs of one of its edges; whether anything was.

    Expects numpy to ignore invalid operations: infinity minus infinity bounds nothing.
    """
    costs = net.costs(i)
    values = len(costs)
    leaner = _keeps_no_more(net.pieces(i), values)
    own = costs[:, None] - costs[None, :]
    most = [_largest_change(table) for table in net.tables[i].values()]
    before = list(accumulate(most, initial=own))
    change = before[-1]
    earlier = np.less.outer(np.arange(values), np.arange(values))
    dominates = (change <= 0) & leaner
    np.fill_diagonal(dominates, False)
    gone: NDArray[np.bool_] = np.any(dominates & (earlier | ~dominates.T), axis=0)
    if gone.any():
        net.restrict(i, ~gone)
        return True
    leaner = leaner.copy()
    np.fill_diagonal(leaner, False)
    after = list(accumulate(most[:0:-1], initial=np.zeros((values, values))))[::-1]
    for (j, table), head, tail in zip(net.tables[i].items(), before, after, strict=False):
        if table.size * values > ENTRIES:
            continue
        rest = head + tail  # the change without this edge
        if not ((rest < np.inf) & leaner).any():
            continue
        change = rest[:, :, None] + table[:, None, :] - table[None, :, :]
        better = (change < 0) | ((change <= 0) & earlier[:, :, None])
        worse = (better & leaner[:, :, None]).any(axis=0) & (table < np.inf)
        if worse.any():
            net.set_table(i, j, np.where(worse, np.inf, table))
            return True
    return False


def _largest_change(table: Costs) -> Costs:
    """``max_w t(u, w) - t(v, w)`` for all pairs of rows; a forbidden ``t(v, w)`` bounds nothing."""
    values = len(table)
    if values * table.size <= ENTRIES:
        change: Costs = np.fmax.reduce(table[:, None, :] - table[None, :, :], axis=2)
        return change
    return np.stack([np.fmax.reduce(row - table, axis=1) for row in table])


def _keeps_no_more(pieces: Pieces | None, values: int) -> NDArray[np.bool_]:
    """Whether strategy ``u`` keeps no more than ``v`` in every piece."""
    if pieces is None:
        return np.ones((values, values), dtype=bool)
    amounts = pieces.amounts
    if amounts.size * values <= ENTRIES:
        result: NDArray[np.bool_] = np.all(amounts[:, :, None] <= amounts[:, None, :], axis=0)
        return result
    result = np.ones((values, values), dtype=bool)
    for row in amounts:
        result &= row[:, None] <= row[None, :]
    return result
