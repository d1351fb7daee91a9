"""Schedules whose ranks run several stages, dealt round like cards: stage ``s`` on rank ``s mod p``. ``p`` ranks, ``m``
microbatches, ``v`` chunks of a rank; ``f``, ``b``, ``i`` and ``w`` are seconds of a rank's chunks together."""

from __future__ import annotations

from collections.abc import Iterable

from costmodels.schedules.actions import Action, Placement
from costmodels.schedules.schedule import Schedule


def interleaved(num_ranks: int, num_microbatches: int, num_chunks: int) -> Schedule:
    """1F1B over chunks: a round of ``p`` microbatches passes chunk after chunk.

    Bubble ``(p - 1)(f + b) / v``; rank ``r`` holds up to ``(v - 1) p + 2 (p - r) - 1`` slices of one
    stage. Narayanan et al. 2021 (2104.04473), section 2.2, with torch's rule for rounds of more than ``p``.
    """
    size = round_size(num_ranks, num_microbatches)
    orders = []
    for rank in range(num_ranks):
        forward, backward = passes(rank, num_ranks, num_microbatches, num_chunks, size)
        fill = min((num_chunks - 1) * size + 2 * (num_ranks - rank - 1), len(forward))
        order = [Action("F", *slice_) for slice_ in forward[:fill]]
        for i, slice_ in enumerate(backward):
            order += [Action("F", *forward[i + fill])] if i + fill < len(forward) else []
            order.append(Action("B", *slice_))
        orders.append(tuple(order))
    return Schedule("interleaved-1f1b", tuple(orders), (dealt(num_ranks, num_chunks),), num_microbatches)


def looped_bfs(num_ranks: int, num_microbatches: int, num_chunks: int) -> Schedule:
    """All microbatches through a chunk before the next chunk, so that sharded parameters are gathered once per chunk.

    Bubble ``(p - 1)(f + b) / v`` for ``m >= p``; every rank holds all ``m`` microbatches. Breadth-first, Lamy-Poirier
    2022 (2211.05953), section 4; the backwards' order is torch's ``ScheduleLoopedBFS``.
    """
    orders = tuple(
        (
            *(Action("F", stage, i) for stage in stages for i in range(num_microbatches)),
            *(Action("B", stage, i) for stage in reversed(stages) for i in reversed(range(num_microbatches))),
        )
        for stages in (range(rank, num_ranks * num_chunks, num_ranks) for rank in range(num_ranks))
    )
    return Schedule("looped-bfs", orders, (dealt(num_ranks, num_chunks),), num_microbatches)


def round_size(num_ranks: int, num_microbatches: int) -> int:
    """Microbatches of one round: ``m // max(1, m // p)``, which is ``p`` where ``p`` divides ``m``."""
    return num_microbatches // max(1, num_microbatches // num_ranks)


def passes(
    rank: int, num_ranks: int, num_microbatches: int, num_chunks: int, size: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(stage, microbatch) of all forwards and of all backwards of a rank, round after round of ``size``."""
    stages = range(rank, num_ranks * num_chunks, num_ranks)

    def rounds(order: Iterable[int]) -> list[tuple[int, int]]:
        chosen = list(order)
        return [(s, i) for at in range(0, num_microbatches, size) for s in chosen for i in range(at, at + size)]

    return rounds(stages), rounds(reversed(stages))


def dealt(num_ranks: int, num_chunks: int) -> Placement:
    """Rank of every stage, round and round."""
    return tuple(range(num_ranks)) * num_chunks
