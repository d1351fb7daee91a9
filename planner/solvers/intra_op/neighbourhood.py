"""Large neighbourhood search: free a piece of the network, keep all else, solve the piece exactly.

A window over nodes ``W`` is a network of its own: edges inside of ``W`` stay, edges across its border become node costs
under what the border chose, and the memory of all other nodes is held at every time point. Its bound is cut at the best
cost known, so a window without an improvement is mostly excluded by its first bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planner.solvers.intra_op.branch import Best, Budget, Tree, without_records
from planner.solvers.intra_op.lagrange import Multipliers, reparametrised
from planner.solvers.intra_op.network import ContradictionError, Network, edges_of, held_by
from planner.solvers.intra_op.pieces import Profile, lifted
from planner.solvers.intra_op.problem import Costs
from planner.solvers.intra_op.reduce import reduce, settle

WINDOW_SPLITS = 12
WINDOW_WORK = 4000
"""Pairs of strategies in all of a window's LPs, above which the next is smaller."""
FIRST_WINDOW = 30
WEIGHTED, TWICE = 0.7, 0.5
"""Shares of windows that begin where most is to be gained, and of those that join two pieces."""
COMPACT, BLUR = 0.5, 0.3
"""Share of pieces that grow by the neighbours with most of their own inside, and how much chance counts beside that."""
REWEIGH = 10
"""Windows before the gains are computed anew."""
LARGEST_BATCH = 32
"""Nodes that a dive gives values before it looks whether memory is left."""


def dive(net: Network, multipliers: Multipliers) -> dict[int, int] | None:
    """A choice within the limit, by giving one node after another the value that the multipliers like best.

    Each step is followed by all reductions, so what memory or an edge forbids is known at once. A value that leads to a
    contradiction is forbidden, and the dive goes on; ``None`` when that contradicts too.
    """
    work = reparametrised(net, multipliers)
    waiting = sorted(work.nodes, key=lambda i: _certainty(_marginals(work, i)))
    batch = 1
    try:
        while waiting:
            group = waiting[-batch:]
            tried = work.fork()
            try:
                for i in reversed(group):
                    _take_best(tried, i)
                reduce(tried)
            except ContradictionError:
                if len(group) == 1:
                    only = np.arange(len(work.costs(group[0]))) == _marginals(work, group[0]).argmin()
                    work.restrict(group[0], ~only)
                    reduce(work)
                batch = 1
            else:
                work, batch = tried, min(2 * batch, LARGEST_BATCH)
            waiting = [i for i in waiting if work.unary[i] is not None]
    except ContradictionError:
        return None
    return work.decode({})


def _take_best(net: Network, i: int) -> None:
    if net.unary[i] is not None:
        marginals = _marginals(net, i)
        net.restrict(i, np.arange(len(marginals)) == marginals.argmin())
        settle(net)


def _marginals(net: Network, i: int) -> Costs:
    marginals = net.costs(i)
    for table in net.tables[i].values():
        marginals = marginals + table.min(axis=1)
    return marginals


def _certainty(marginals: Costs) -> float:
    first, second = np.partition(marginals, 1)[:2]
    return float(second - first)


def window(net: Network, nodes: Sequence[int], choice: Mapping[int, int], cost: float, held: Profile) -> Network:
    """The network of some nodes while all others keep to a choice of that cost and memory.

    Its node ``a`` is ``nodes[a]``.
    """
    place = {i: a for a, i in enumerate(nodes)}
    unary = []
    tables: list[dict[int, Costs]] = [{} for _ in nodes]
    inside = 0.0
    for a, i in enumerate(nodes):
        costs, mine = net.costs(i), choice[i]
        for j, table in net.tables[i].items():
            b = place.get(j)
            if b is None:
                costs = costs + table[:, choice[j]]
            else:
                tables[a][b] = table
                inside += float(table[mine, choice[j]]) / 2
        unary.append(costs)
        inside += float(costs[mine])
        pieces = net.pieces(i)
        if pieces is not None:
            held = lifted(held, pieces.starts, pieces.ends, -pieces.amounts[:, mine])
    memory = [net.memory[i] for i in nodes]
    made = Network(list(unary), tables, memory, held, net.limit, cost - inside)
    for a in range(len(nodes)):
        made.touch(a)
    return made


def improve(best: Best, budget: Budget, stall: int, multipliers: Multipliers, random: np.random.Generator) -> None:
    """Windows around changing nodes until so many in a row found nothing, or time runs out.

    Most begin where the choice costs most above what the multipliers say is needed; half join a second piece that lives
    at the same time. Their size follows the work that they were, not the clock, so what is found does not depend on it.
    """
    assert best.choice is not None
    net = best.net
    nodes = net.nodes
    theta = reparametrised(net, multipliers)
    spans = {i: (int(p.starts[0]), int(p.ends[-1])) for i in nodes if (p := net.pieces(i)) is not None}
    held = held_by(net, best.choice)
    size, failed, age = float(FIRST_WINDOW), 0, REWEIGH
    while budget.left > 0 and failed < stall:
        failed += 1
        age += 1
        if age > REWEIGH:
            weights, age = _above_need(theta, best.choice), 0
        start = int(random.choice(nodes, p=weights if random.random() < WEIGHTED else None))
        region = connected(net, start, int(size), random)
        if start in spans and random.random() < TWICE:
            at = int(random.integers(*spans[start]))
            second = int(random.choice([i for i, (lo, hi) in spans.items() if lo <= at < hi]))
            half = int(size / 2)
            region = sorted({*connected(net, start, half, random), *connected(net, second, half, random)})
        piece = window(net, region, best.choice, best.cost, held)
        inner = Best(piece, best.step, best.whole, best.cost, {a: best.choice[i] for a, i in enumerate(region)})
        Tree(without_records(piece), inner).grow(Budget(budget.until, WINDOW_SPLITS))
        if inner.cost < best.cost and inner.choice is not None:
            failed = 0
            best.offer({**best.choice, **{i: inner.choice[a] for a, i in enumerate(region)}})
            held = held_by(net, best.choice)
        size = min(size * 1.03, len(nodes)) if inner.work < WINDOW_WORK else max(10.0, size * 0.9)


def _above_need(theta: Network, choice: Mapping[int, int]) -> Costs:
    """Probability of each node: by what it and half of its edges cost above their least."""
    nodes = theta.nodes
    above = {i: float(theta.costs(i)[choice[i]] - theta.costs(i).min()) for i in nodes}
    for i, j, table in edges_of(theta):
        half = float(table[choice[i], choice[j]] - table.min()) / 2
        above[i] += half
        above[j] += half
    weights = np.array([above[i] for i in nodes]) + 1e-12
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def connected(net: Network, start: int, size: int, random: np.random.Generator) -> list[int]:
    """A connected piece: neighbours of what is taken, half of the time at random, else those with most inside first."""
    compact = random.random() < COMPACT
    taken = {start}
    inside = dict.fromkeys(net.tables[start], 1)
    while inside and len(taken) < size:
        found = list(inside)
        if compact:
            share = [inside[j] / len(net.tables[j]) for j in found]
            i = found[int(np.argmax(share + BLUR * random.random(len(found))))]
        else:
            i = found[int(random.integers(len(found)))]
        taken.add(i)
        del inside[i]
        for j in net.tables[i]:
            if j not in taken:
                inside[j] = inside.get(j, 0) + 1
    return sorted(taken)
