"""Large steps towards a good choice: solve most of a network at prices, keep of the changes those that fit.

A round frees some nodes or all (`planner.solvers.intra_op.ordering`), and finds their least cost with memory at prices
``lam``. That choice is rarely within the limit, but what changed falls into pieces that no edge joins, so what they
cost and keep adds up: pieces that cost less are taken while they fit, then those that make room, then the rest of the
first. What costs more in the end is not taken.

Prices follow the subgradient, held less limit, by the step that would close the gap to the choice were it the optimum:

    lam <- max(0, lam + (cost - L) / (2 |g|^2) g),    g = held - limit,    L = least + lam g.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import numpy as np

from planner.solvers.intra_op.branch import Best
from planner.solvers.intra_op.neighbourhood import connected
from planner.solvers.intra_op.network import Network, held_by
from planner.solvers.intra_op.ordering import order, priced_costs
from planner.solvers.intra_op.pieces import Profile, profile

ENTRIES = 100_000
"""Largest table of a round."""
PRICINGS = 5
"""Prices that are tried for one order."""
FIRST_ROUNDS = 8
"""Rounds over all nodes before smaller ones."""
SMALLEST = 128
"""Nodes of the smallest round; sizes are doubled by chance up to all."""


def exchange(best: Best, until: float, stall: int, prices: Profile, random: np.random.Generator) -> Profile:
    """Rounds until so many in a row found nothing, or ``until`` (of `time.monotonic`); the prices that it ends at."""
    assert best.choice is not None
    net = best.net
    nodes = net.nodes
    held = held_by(net, best.choice)
    doublings = max(0, int(np.log2(len(nodes) / SMALLEST))) + 1
    rounds = failed = 0
    while time.monotonic() < until and failed < stall:
        whole = rounds < FIRST_ROUNDS or (drawn := int(random.integers(doublings + 1))) == doublings
        some = nodes if whole else connected(net, int(random.choice(nodes)), SMALLEST << drawn, random)
        now, before = prices, best.cost
        turns = order(net, some, ENTRIES, random)
        for _ in range(PRICINGS):
            found = turns.least(priced_costs(net, turns.free, best.choice, now))
            changed = {i for i, value in found.items() if value != best.choice[i]}
            cost, kept = difference(net, changed, best.choice, found)
            excess = held + kept - net.limit
            gap = -cost - float(now @ excess)
            held = _take(best, held, found, changed, now)
            ascent = np.where((now <= 0) & (excess < 0), 0.0, excess)
            if gap <= 0 or not ascent.any():
                break
            now = np.maximum(0.0, now + gap / (2 * float(ascent @ ascent)) * ascent)
        if whole:
            prices = now
        rounds += 1
        failed = 0 if best.cost < before else failed + 1
    return prices


def _take(best: Best, held: Profile, found: Mapping[int, int], changed: set[int], prices: Profile) -> Profile:
    """Take of the changes the pieces that lower the cost and fit; what is held then."""
    net, choice = best.net, best.choice
    assert choice is not None
    pieces = [(*difference(net, piece, choice, found), piece) for piece in separate(net, changed)]
    pieces.sort(key=lambda piece: piece[0] + float(prices @ piece[1]))
    taken: list[int] = []
    total = least = 0.0
    number, kept = 0, held
    now = held
    for gains in (True, False, True):
        left = []
        for piece in pieces:
            cost, more, nodes = piece
            if (cost <= 0) is gains and not (now + more > net.limit).any():
                now, total = now + more, total + cost
                taken += nodes
                if total < least:
                    least, number, kept = total, len(taken), now
            else:
                left.append(piece)
        pieces = left
    if number and best.offer({**choice, **{i: found[i] for i in taken[:number]}}):
        return kept
    return held


def separate(net: Network, nodes: Collection[int]) -> list[list[int]]:
    """Parts of some nodes that no edge joins."""
    left = dict.fromkeys(sorted(nodes))
    parts = []
    while left:
        part = [left.popitem()[0]]
        for i in part:
            for j in net.tables[i]:
                if j in left:
                    del left[j]
                    part.append(j)
        parts.append(part)
    return parts


def difference(
    net: Network, nodes: Collection[int], choice: Mapping[int, int], found: Mapping[int, int]
) -> tuple[float, Profile]:
    """What a choice costs and holds more when some nodes take what was found for them."""
    inside = set(nodes)
    cost = 0.0
    live, amounts = [], []
    for i in nodes:
        new, old = found[i], choice[i]
        cost += float(net.costs(i)[new] - net.costs(i)[old])
        for j, table in net.tables[i].items():
            if j not in inside:
                cost += float(table[new, choice[j]] - table[old, choice[j]])
            elif i < j:
                cost += float(table[new, found[j]] - table[old, choice[j]])
        pieces = net.pieces(i)
        if pieces is not None:
            live.append(pieces)
            amounts.append(pieces.amounts[:, new] - pieces.amounts[:, old])
    if not live:
        return cost, np.zeros(len(net.held))
    starts, ends = (np.concatenate([pieces[side] for pieces in live]) for side in (0, 1))
    return cost, profile(len(net.held), starts, ends, np.concatenate(amounts))
