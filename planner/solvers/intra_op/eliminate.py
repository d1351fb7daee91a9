"""Min-sum elimination: exact where no memory binds and the graph is narrow.

Eliminating node ``v`` replaces all tables that know it by one over its neighbours:

    m(x_N) = min_u [c(u) + sum over tables of t(u, x_N)],

and keeps the argmin. The next node is always the one whose table is smallest (min-weight order); the last numbers are
the optimum, and going back through the argmins gives the choice.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from planner.solvers.intra_op.problem import Costs

Edges = Iterable[tuple[int, int, Costs]]

SLAB = 1_000_000
"""Entries of the largest table that is made at once where it can be made in slabs."""
WIDE = 64
"""How many times larger a table may be that is made in slabs."""


def least_between(left: Costs, right: Costs) -> tuple[Costs, NDArray[np.intp]]:
    """``min_u left[u, v] + right[u, w]`` and its argmin, by ``[v, w]``; large tables in slabs of ``v``."""
    if left.size * right.shape[1] <= SLAB:
        total = left[:, :, None] + right[:, None, :]
        return total.min(axis=0), total.argmin(axis=0)
    shape = left.shape[1], right.shape[1]
    least, argmin = np.empty(shape), np.empty(shape, dtype=np.intp)
    for v, column in enumerate(left.T):
        slab = column[:, None] + right
        argmin[v] = slab.argmin(axis=0)
        least[v] = np.take_along_axis(slab, argmin[v][None], axis=0)[0]
    return least, argmin


@dataclass(frozen=True)
class Eliminated:
    """What elimination leaves: a table over the kept nodes, and the way back."""

    scope: tuple[int, ...]
    table: Costs
    """Least total cost by the strategies of ``scope``; a number when nothing was kept."""
    steps: tuple[tuple[int, tuple[int, ...], NDArray[np.intp]], ...]
    """Node, those that its strategy follows from, and the argmin over them, in order of elimination."""

    def decode(self, kept: Sequence[int]) -> dict[int, int]:
        """Strategy of every node, given those of ``scope``."""
        choice = dict(zip(self.scope, kept, strict=True))
        for node, parents, argmin in reversed(self.steps):
            choice[node] = int(argmin[tuple(choice[p] for p in parents)])
        return choice


def eliminate(
    unary: Mapping[int, Costs], edges: Edges, *, keep: tuple[int, ...] = (), entries: int | None = None
) -> Eliminated | None:
    """Take out every node but ``keep``; ``None`` when that needs a table of more than ``entries``, or more than `WIDE`
    times as many sums.

    Several edges may join one pair. The table's axes are in the order of ``keep``.
    """
    factors: dict[int, list[tuple[tuple[int, ...], Costs]]] = {i: [] for i in unary}
    near: dict[int, set[int]] = {i: set() for i in unary}
    loops = dict(unary)
    for i, j, table in edges:
        if i == j:
            loops[i] = loops[i] + np.diagonal(table)
            continue
        factor = ((i, j), table)
        factors[i].append(factor)
        factors[j].append(factor)
        near[i].add(j)
        near[j].add(i)
    size = {i: len(costs) for i, costs in unary.items()}
    order = _order(size, near, keep, entries)
    if order is None:
        return None
    steps = []
    constant = 0.0
    for i, scope in order:
        gone = factors.pop(i)
        if size[i] * prod(size[j] for j in scope) > SLAB and len(scope) > 1:
            least, argmin = _in_slabs(i, scope, loops[i], gone, size)
        else:
            total = _joined((i, *scope), loops[i], gone, size)
            argmin = total.argmin(axis=0)
            least = np.take_along_axis(total, argmin[None], axis=0)[0] if scope else total[argmin]
        steps.append((i, scope, argmin))
        for j in scope:
            factors[j] = [factor for factor in factors[j] if i not in factor[0]]
        if len(scope) == 1:
            loops[scope[0]] = loops[scope[0]] + least
        elif scope:
            made = (scope, least)
            for j in scope:
                factors[j].append(made)
        else:
            constant += float(least)
    table = _joined(keep, None, _distinct(factors[i] for i in keep), size) + constant
    for axis, i in enumerate(keep):
        table = table + loops[i].reshape([-1 if a == axis else 1 for a in range(len(keep))])
    return Eliminated(keep, table, tuple(steps))


def _order(
    size: Mapping[int, int], near: dict[int, set[int]], keep: tuple[int, ...], entries: int | None
) -> list[tuple[int, tuple[int, ...]]] | None:
    """Nodes and their neighbours in min-weight order; ``None`` where a step is too large."""
    weight = {i: size[i] * prod(size[j] for j in near[i]) for i in size if i not in keep}
    heap = [(w, i) for i, w in weight.items()]
    heapq.heapify(heap)
    order = []
    while heap:
        w, i = heapq.heappop(heap)
        if weight.get(i) != w:
            continue
        if entries is not None and (w > entries * WIDE or w > entries * size[i]):
            return None
        del weight[i]
        scope = tuple(sorted(near[i]))
        order.append((i, scope))
        for j in scope:
            near[j].update(scope)
            near[j] -= {i, j}
        for j in scope:
            if j in weight:
                weight[j] = size[j] * prod(size[k] for k in near[j])
                heapq.heappush(heap, (weight[j], j))
    return order


def _in_slabs(
    i: int, scope: tuple[int, ...], costs: Costs, factors: Sequence[tuple[tuple[int, ...], Costs]],
    size: Mapping[int, int],
) -> tuple[Costs, NDArray[np.intp]]:  # fmt: skip
    """Least over ``i`` and its argmin, one value of the first of ``scope`` after the other."""
    first, rest = scope[0], scope[1:]
    with_first = [(nodes, np.moveaxis(table, nodes.index(first), 0)) for nodes, table in factors if first in nodes]
    without = _joined((i, *rest), costs, [f for f in factors if first not in f[0]], size)
    shape = [size[j] for j in scope]
    least, argmin = np.empty(shape), np.empty(shape, dtype=np.intp)
    for v in range(size[first]):
        at_v = [(tuple(n for n in nodes if n != first), table[v]) for nodes, table in with_first]
        slab = without + _joined((i, *rest), None, at_v, size)
        argmin[v] = slab.argmin(axis=0)
        least[v] = np.take_along_axis(slab, argmin[v][None], axis=0)[0]
    return least, argmin


def _joined(
    scope: tuple[int, ...],
    costs: Costs | None,
    factors: Iterable[tuple[tuple[int, ...], Costs]],
    size: Mapping[int, int],
) -> Costs:
    """Sum of tables over ``scope``; ``costs`` belong to its first node."""
    if len(scope) == 2 and costs is not None:
        total = costs[:, None]
        for nodes, table in factors:
            total = total + (table if nodes == scope else table.T)
        return total
    total = np.zeros([size[i] for i in scope])
    if costs is not None:
        total += costs.reshape([-1] + [1] * (len(scope) - 1))
    place = {node: axis for axis, node in enumerate(scope)}
    for nodes, table in factors:
        axes = [place[node] for node in nodes]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        shape = [1] * len(scope)
        for axis, length in zip(axes, table.shape, strict=True):
            shape[axis] = length
        total += table.transpose(order).reshape(shape)
    return total


def _distinct(rows: Iterable[list[tuple[tuple[int, ...], Costs]]]) -> list[tuple[tuple[int, ...], Costs]]:
    """Every table once, in order."""
    seen: dict[int, tuple[tuple[int, ...], Costs]] = {}
    for row in rows:
        for factor in row:
            seen.setdefault(id(factor), factor)
    return list(seen.values())
