"""Schedules of one stage per rank. ``p`` ranks, ``m`` microbatches, ``f`` and ``b`` seconds of a forward and a whole
backward, of which ``i`` and ``w`` for the gradients of input and weights."""

from __future__ import annotations

from costmodels.schedules.actions import Action
from costmodels.schedules.schedule import Schedule


def gpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """All forwards, then all backwards.

    Bubble ``(p - 1)(f + b)``; every rank holds ``m`` microbatches. Huang et al. 2019 (1811.06965), section 2.3.
    """
    orders = tuple(
        tuple(Action(kind, rank, i) for kind in "FB" for i in range(num_microbatches)) for rank in range(num_ranks)
    )
    return Schedule("gpipe", orders, (tuple(range(num_ranks)),), num_microbatches)


def one_f_one_b(num_ranks: int, num_microbatches: int) -> Schedule:
    """Fill with forwards, alternate, drain.

    Bubble ``(p - 1)(f + b)``; rank ``r`` holds ``min(p - r, m)`` microbatches. PipeDream-Flush, Narayanan et al. 2021
    (2006.09503), section 2.2; DAPPLE, Fan et al. 2021.
    """

    def order(rank: int) -> list[Action]:
        fill = min(num_ranks - rank, num_microbatches)
        actions = [Action("F", rank, i) for i in range(fill)]
        for i in range(num_microbatches):
            actions.append(Action("B", rank, i))
            if i + fill < num_microbatches:
                actions.append(Action("F", rank, i + fill))
        return actions

    return _single("1f1b", num_microbatches, [order(rank) for rank in range(num_ranks)])


def _single(name: str, num_microbatches: int, orders: list[list[Action]]) -> Schedule:
    return Schedule(name, tuple(map(tuple, orders)), (tuple(range(len(orders))),), num_microbatches)
