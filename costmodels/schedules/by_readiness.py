"""Schedules whose published form is a rule and not a list: every rank takes the most urgent action that is ready.

The rule is run in the papers' unit times, a whole backward as long as two forwards; the order that comes out is what is
then priced with real seconds. ``p`` ranks, ``m`` microbatches, ``v`` chunks of a rank; ``f`` and ``b`` seconds of a
whole rank's forward and backward.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from costmodels.schedules.actions import Action, Placement
from costmodels.schedules.schedule import Schedule

UNITS = {"F": 1, "B": 2}


def orders_by_readiness(
    placements: tuple[Placement, ...], num_microbatches: int, limit: int
) -> tuple[tuple[Action, ...], ...]:
    """Per rank the order in which it would take its actions.

    Backwards come before forwards, what is nearer to the end of its pass before what is farther, earlier microbatches
    before later ones. A microbatch enters when fewer than ``limit`` of its direction are between their first forward
    and their last backward.
    """
    directions, last = len(placements), len(placements[0]) - 1
    num_ranks = max(placements[0]) + 1
    orders: list[list[Action]] = [[] for _ in range(num_ranks)]
    ready: list[list[tuple[int, int, int, Action]]] = [[] for _ in range(num_ranks)]
    running: list[tuple[int, int, Action]] = []
    idle = set(range(num_ranks))

    def offer(action: Action) -> None:
        kind, stage, microbatch = action
        to_go = stage if kind == "B" else last - stage
        rank = placements[microbatch % directions][stage]
        heapq.heappush(ready[rank], (int(kind == "F"), to_go, microbatch, action))

    def follow(action: Action) -> Iterator[Action]:
        kind, stage, microbatch = action
        if kind == "F":
            yield Action("F", stage + 1, microbatch) if stage < last else Action("B", stage, microbatch)
        elif stage:
            yield Action("B", stage - 1, microbatch)
        elif microbatch + limit * directions < num_microbatches:
            yield Action("F", 0, microbatch + limit * directions)

    for microbatch in range(min(limit * directions, num_microbatches)):
        offer(Action("F", 0, microbatch))
    now = 0
    while True:
        for rank in sorted(idle):
            if ready[rank]:
                action = heapq.heappop(ready[rank])[-1]
                orders[rank].append(action)
                heapq.heappush(running, (now + UNITS[action.kind], rank, action))
                idle.discard(rank)
        if not running:
            return tuple(map(tuple, orders))
        now = running[0][0]
        while running and running[0][0] == now:
            _, rank, action = heapq.heappop(running)
            idle.add(rank)
            for following in follow(action):
                offer(following)


def wave(num_ranks: int, num_microbatches: int, num_chunks: int) -> Schedule:
    """Stages zigzag down and up the ranks, ``v / 2`` times (waves), so that a turn needs no transfer.

    No closed form beyond the papers' ``m = p``; the bubble shrinks about as ``1 / v``. At most ``3 p / 2`` microbatches
    are under way: the paper's ``p`` starve the ranks where ``m > p``. Hanayo, Liu et al. 2023 (2308.15762), section 3.
    """
    placements = (zigzag(num_ranks, num_chunks),)
    orders = orders_by_readiness(placements, num_microbatches, num_ranks + num_ranks // 2)
    return Schedule("wave", orders, placements, num_microbatches)


def bitpipe(num_ranks: int, num_microbatches: int, num_chunks: int) -> Schedule:
    """Two zigzag pipelines that start at opposite ends, each for half of the microbatches; parameters live twice.

    Bubble ``(p - 2)(f + b) / 3`` for ``p = m = 4``, two chunks and ``b = 2 f``, the paper's share
    ``(p - 2) / (3 m + p - 2)`` of the step; a little more for more ranks. At most ``3 p / 2`` microbatches are under
    way. BitPipe, Wu et al. 2024 (2410.19367), sections 3 and 4.
    """
    down = zigzag(num_ranks, num_chunks)
    placements = (down, tuple(num_ranks - 1 - rank for rank in down))
    orders = orders_by_readiness(placements, num_microbatches, (num_ranks + num_ranks // 2) // 2)
    return Schedule("bitpipe", orders, placements, num_microbatches)


def zigzag(num_ranks: int, num_chunks: int) -> Placement:
    """Stages down the ranks and up again: neighbouring chunks meet on one rank."""
    down = tuple(range(num_ranks))
    return tuple(rank for chunk in range(num_chunks) for rank in (down[::-1] if chunk % 2 else down))
