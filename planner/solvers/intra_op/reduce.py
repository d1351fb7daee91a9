"""Exact reductions: what is left has the same optimum, and every choice of it decodes into one of the problem.

A node goes when its value is known, when it has no memory and at most two neighbours (min-sum folding), when its
strategy is a function of a neighbour's (`_contract`), or when what it keeps depends on one neighbour alone
(`_fold_live`). Values and pairs go by dominance (`planner.solvers.intra_op.dominance`) and when the least that others
keep leaves them no room (`_trim_memory`).
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from planner.solvers.intra_op.dominance import drop_dominated
from planner.solvers.intra_op.eliminate import least_between
from planner.solvers.intra_op.network import ContradictionError, Network
from planner.solvers.intra_op.pieces import Pieces, Profile, Times, least_within, profile

FOLD_ENTRIES = 1 << 17
"""Largest table that folding a node of two neighbours may make."""


def reduce(net: Network, pinned: frozenset[int] = frozenset()) -> None:
    """Apply all reductions until none does anything; pinned nodes keep all their values.

    Raises:
        ContradictionError: no choice keeps within the limit at finite cost.
    """
    with np.errstate(invalid="ignore"):
        _trim_memory(net)
        while net.queue:
            settle(net, pinned)
            _trim_memory(net)


def fold(net: Network, pinned: frozenset[int] = frozenset()) -> None:
    """Take out only nodes without memory and with at most two neighbours, those that leave the smallest table first."""

    def left(i: int) -> int:
        return prod(len(net.costs(j)) for j in net.tables[i])

    waiting = {i for i in net.nodes if i not in pinned and net.pieces(i) is None}
    while narrow := [i for i in waiting if len(net.tables[i]) <= 2]:
        i = min(narrow, key=lambda i: (left(i), i))
        waiting.discard(i)
        _fold(net, i)


def sweep(net: Network, pinned: frozenset[int] = frozenset()) -> None:
    """Fold, compare every remaining node's strategies once, fold again: most of what `reduce` gains of a network with
    hundreds of strategies per node, in a fraction of its time."""
    fold(net, pinned)
    with np.errstate(invalid="ignore"):
        for i in sorted(net.nodes, key=lambda i: -len(net.costs(i))):
            if i not in pinned:
                drop_dominated(net, i)
    fold(net, pinned)


def settle(net: Network, pinned: frozenset[int] = frozenset()) -> None:
    """The reductions that look at one node and its neighbours."""
    with np.errstate(invalid="ignore"):
        while (i := net.next_dirty()) is not None:
            if i not in pinned:
                _look_at(net, i)


def _look_at(net: Network, i: int) -> None:
    finite = net.costs(i) < np.inf
    if not finite.all():
        net.restrict(i, finite)
    if len(net.costs(i)) == 1:
        net.assign(i, 0)
    elif net.pieces(i) is None and _fold(net, i):
        return
    elif not drop_dominated(net, i) and not _contract(net, i) and len(net.tables[i]) == 2:
        _fold_live(net, i)


def _fold(net: Network, i: int) -> bool:
    """Take out a node that keeps nothing: ``min_u c(u) + t(u, v) + r(u, w)`` is a table over its neighbours."""
    costs, neighbours = net.costs(i), tuple(net.tables[i])
    if len(neighbours) > 2:
        return False
    if not neighbours:
        net.assign(i, int(costs.argmin()))
        return True
    total = costs[:, None] + net.tables[i][neighbours[0]]
    if len(neighbours) == 1:
        net.remove(i, neighbours, total.argmin(axis=0))
        net.add_cost(neighbours[0], total.min(axis=0))
        return True
    other = net.tables[i][neighbours[1]]
    if total.shape[1] * other.shape[1] > FOLD_ENTRIES:
        return False
    least, argmin = least_between(total, other)
    net.remove(i, neighbours, argmin)
    net.add_table(neighbours[0], neighbours[1], least)
    return True


def _contract(net: Network, i: int) -> bool:
    """Take out a node of which each value of a neighbour allows one strategy: its edges and memory move there."""
    costs, values = net.costs(i), len(net.costs(i))
    for j, table in net.tables[i].items():
        finite = table < np.inf
        if not (finite.sum(axis=0) == 1).all():
            continue
        partners = table.shape[1]
        growth = sum((partners - values) * len(net.costs(k)) for k in net.tables[i] if k != j)
        if growth > values * partners:
            continue
        follows = finite.argmax(axis=0)
        moved = [(k, other[follows]) for k, other in net.tables[i].items() if k != j]
        pieces = net.pieces(i)
        net.remove(i, (j,), follows)
        net.add_cost(j, costs[follows] + table[follows, np.arange(partners)])
        if pieces is not None:
            net.add_memory(j, Pieces(pieces.starts, pieces.ends, pieces.amounts[:, follows]))
        for k, rows in moved:
            net.add_table(j, k, rows)
        return True
    return False


def _fold_live(net: Network, i: int) -> None:
    """Fold a node of two neighbours that keeps something: the cheapest strategy must keep the least, for each pair of
    their values, and how much it keeps must follow from one of the two."""
    pieces = net.pieces(i)
    (j, table), (k, other) = net.tables[i].items()
    if pieces is None or table.size * other.shape[1] * len(pieces.starts) > FOLD_ENTRIES:
        return
    total = (net.costs(i)[:, None] + table)[:, :, None] + other[:, None, :]
    leanest_first = np.argsort(pieces.amounts.sum(axis=0), kind="stable")
    best = leanest_first[total[leanest_first].argmin(axis=0)]
    finite = total < np.inf
    possible = finite.any(axis=0)
    least = np.where(finite, pieces.amounts[:, :, None, None], np.inf).min(axis=1)
    kept = pieces.amounts[:, best]
    if (kept > least)[:, possible].any():
        return
    for side, axis in ((j, 2), (k, 1)):
        most = np.where(possible, kept, 0.0).max(axis=axis)
        if (np.where(possible, kept, np.inf).min(axis=axis) >= most).all():
            net.remove(i, (j, k), best)
            net.add_memory(side, Pieces(pieces.starts, pieces.ends, most))
            net.add_table(j, k, total.min(axis=0))
            return


def _trim_memory(net: Network) -> None:
    """Drop values for which there is no room, then time points that cannot be over the limit.

    A value must fit beside the least that all other nodes keep. A time point whose most is within the limit, or which
    holds no more than the next or the one before it, is left out. Without a limit (infinity) no value is too large.

    Raises:
        ContradictionError: the least of all is over the limit.
    """
    live = [(i, pieces) for i in net.nodes if (pieces := net.pieces(i)) is not None]
    room = net.limit - net.held
    if len(net.held) and room.min() < 0:
        raise ContradictionError
    if not live:
        return
    starts = np.concatenate([p.starts for _, p in live])
    ends = np.concatenate([p.ends for _, p in live])
    spare = least_within(room, starts, ends)
    done = 0
    most = []
    for i, pieces in live:
        until = done + len(pieces.starts)
        over: NDArray[np.bool_] = np.any(pieces.amounts > spare[done:until, None], axis=0)
        if over.any():
            net.forbid(i, over)
        most.append(np.where(over, 0.0, pieces.amounts).max(axis=1))
        done = until
    kept = profile(len(room), starts, ends, np.concatenate(most)) > room if np.isfinite(net.limit) else room > 0
    kept &= ~_no_more_than_neighbours(net.held, starts, ends)
    if kept.all():
        return
    renamed = np.append(0, kept.cumsum())
    for i, pieces in live:
        begin, end = renamed[pieces.starts], renamed[pieces.ends]
        left = end > begin
        net.memory[i] = (Pieces(begin[left], end[left], pieces.amounts[left]),) if left.any() else ()
        if not left.all():
            net.touch(i)
    net.held = net.held[kept]


def _no_more_than_neighbours(held: Profile, starts: Times, ends: Times) -> NDArray[np.bool_]:
    """Time points that hold no more than the next (nothing ends between) or the one before (nothing begins)."""
    length = len(held)
    begins = np.bincount(starts, minlength=length + 1)[1:length] > 0
    stops = np.bincount(ends, minlength=length + 1)[1:length] > 0
    below_next = ~stops & (held[:-1] <= held[1:])
    below_last = ~begins & (held[1:] <= held[:-1]) & ~below_next
    needless: NDArray[np.bool_] = np.append(below_next, False) | np.append(False, below_last)
    return needless
