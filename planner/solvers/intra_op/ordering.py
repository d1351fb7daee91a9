"""Elimination of all but a few nodes, at prices: what a large change of a choice is made of.

Nodes go in min-weight order as in `planner.solvers.intra_op.eliminate`. Where the next table would be too large, the
node with most neighbours (times chance) keeps its value instead, and its edges become costs of their other ends. What
is left is one min-sum pass over tables that are known beforehand, so one `Order` serves many prices:

    m_i(x_S) = min_u [c_i(u) + sum_t lam_t usage_it(u) + sum_j t_ij(u, x_j) + sum_k m_k(u, x_S)].

No argmin is kept: going back, each node's row at its parents' values is added up again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.solvers.intra_op.network import Network
from planner.solvers.intra_op.pieces import Profile
from planner.solvers.intra_op.problem import Costs

LUCK = 0.5
"""Spread of the logarithm of what a node's number of neighbours is multiplied by."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A node's turn."""

    node: int
    scope: tuple[int, ...]
    """Those that its message is over, in the order in which they go."""
    edges: tuple[tuple[int, Costs, Costs], ...]
    """Neighbours that go later, with the edge's table, and that as it is added to all the rest."""
    messages: tuple[tuple[int, tuple[int, ...], Shape], ...]
    """Nodes that went before, what their message is over beside this one, and its shape as it is added."""
    shape: Shape


@dataclass(frozen=True)
class Order:
    """The free nodes and their turns; all others keep their values."""

    free: frozenset[int]
    steps: tuple[Step, ...]

    def least(self, costs: Mapping[int, Costs]) -> dict[int, int]:
        """Values of the free nodes of least total cost."""
        messages: dict[int, Costs] = {}
        for step in self.steps:
            total = costs[step.node].reshape(step.shape)
            for k, _, shape in step.messages:
                total = total + messages[k].reshape(shape)
            for _, _, table in step.edges:
                total = total + table
            if step.scope:
                messages[step.node] = total.min(axis=0)
        choice: dict[int, int] = {}
        for step in reversed(self.steps):
            row = costs[step.node]
            for k, others, _ in step.messages:
                at: tuple[slice | int, ...] = (slice(None), *(choice[j] for j in others))
                row = row + messages[k][at]
            for j, table, _ in step.edges:
                row = row + table[:, choice[j]]
            choice[step.node] = int(row.argmin())
        return choice


def order(net: Network, nodes: Iterable[int], entries: int, random: np.random.Generator) -> Order:
    """Which of ``nodes`` are free and when each goes; no table has more than ``entries``."""
    size = {i: len(net.costs(i)) for i in nodes}
    turns = _turns(net, size, entries, random)
    place = {i: a for a, (i, _) in enumerate(turns)}
    waiting: dict[int, list[tuple[int, tuple[int, ...]]]] = {i: [] for i in place}
    steps = []
    for i, near in turns:
        scope = tuple(sorted((j for j in near if j in place), key=place.__getitem__))
        axes = (i, *scope)
        edges = [
            (j, table, table.reshape(_shape(axes, (i, j), size)))
            for j, table in net.tables[i].items()
            if place.get(j, -1) > place[i]
        ]
        came = sorted(waiting.pop(i), key=lambda message: len(message[1]))
        messages = tuple((k, over[1:], _shape(axes, over, size)) for k, over in came)
        steps.append(Step(i, scope, tuple(edges), messages, _shape(axes, (i,), size)))
        if scope:
            waiting[scope[0]].append((i, scope))
    return Order(frozenset(place), tuple(steps))


def _shape(axes: tuple[int, ...], nodes: tuple[int, ...], size: Mapping[int, int]) -> Shape:
    return tuple(size[j] if j in nodes else 1 for j in axes)


def _turns(
    net: Network, size: Mapping[int, int], entries: int, random: np.random.Generator
) -> list[tuple[int, set[int]]]:
    """Nodes in min-weight order with the neighbours that each has then, some of which keep their values after all."""
    near = {i: {j for j in net.tables[i] if j in size} for i in size}
    luck = dict(zip(size, np.exp(LUCK * random.standard_normal(len(size))).tolist(), strict=True))

    def weigh(i: int) -> int:
        weight = size[i]
        for j in near[i]:
            weight *= size[j]
            if weight > entries:
                return entries + 1
        return weight

    weight = {i: weigh(i) for i in size}
    heap = [(w, i) for i, w in weight.items()]
    heapq.heapify(heap)
    turns = []
    while heap:
        w, i = heapq.heappop(heap)
        if weight.get(i) != w:
            continue
        gone = i if w <= entries else max(weight, key=lambda k: len(near[k]) * luck[k])
        del weight[gone]
        scope = near.pop(gone)
        if w <= entries:
            turns.append((i, scope))
        elif gone != i:
            heapq.heappush(heap, (w, i))
        for j in scope:
            if w <= entries:
                near[j] |= scope
                near[j].discard(j)
            near[j].discard(gone)
        for j in scope:
            if weight[j] != (now := weigh(j)):
                weight[j] = now
                heapq.heappush(heap, (now, j))
    return turns


def priced_costs(net: Network, free: frozenset[int], choice: Mapping[int, int], prices: Profile) -> dict[int, Costs]:
    """Costs of the free nodes beside what all others chose, memory at its prices."""
    total = np.append(0.0, prices.cumsum())
    made = {}
    for i in free:
        costs = net.costs(i)
        pieces = net.pieces(i)
        if pieces is not None:
            costs = costs + (total[pieces.ends] - total[pieces.starts]) @ pieces.amounts
        for j, table in net.tables[i].items():
            if j not in free:
                costs = costs + table[:, choice[j]]
        made[i] = costs
    return made
