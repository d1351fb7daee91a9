"""Schedules that halve the backward and put gradients of weights where a rank would wait.

``p`` ranks, ``m`` microbatches, ``v`` chunks of a rank; ``f``, ``b``, ``i`` and ``w`` are seconds of a rank's chunks
together: forward, whole backward, gradients of input and weights.
"""

from __future__ import annotations

from itertools import pairwise

from costmodels.schedules.actions import Action
from costmodels.schedules.many_chunks import dealt, passes, round_size
from costmodels.schedules.schedule import Schedule


def zb_h1(num_ranks: int, num_microbatches: int, num_chunks: int) -> Schedule:
    """Interleaved 1F1B with halved backwards: rank ``r`` lets the first ``r`` gradients of weights wait.

    With one chunk it is ZB-H1: bubble ``(p - 1)(f + b - 2 w)`` where ``f = i = w``, memory as 1F1B. Qi et al. 2023
    (2401.10241), section 2.1, figure 3; for more chunks torch's ``ScheduleInterleavedZeroBubble``.
    """
    size = round_size(num_ranks, num_microbatches) if num_chunks > 1 else 1
    orders = []
    for rank in range(num_ranks):
        forward, backward = passes(rank, num_ranks, num_microbatches, num_chunks, size)
        orders.append(tuple(split(forward, backward, (num_chunks - 1) * size + num_ranks - rank - 1, rank)))
    return Schedule("zb-h1", tuple(orders), (dealt(num_ranks, num_chunks),), num_microbatches)


def zb_h2(num_ranks: int, num_microbatches: int) -> Schedule:
    """No bubble for the memory of two pipelines: rank ``r`` runs ``2 (p - r) - 1`` forwards before its first backward
    and ``2 r + 1`` gradients of weights after its last.

    Bubble ``(p - 1)(f + i - 2 w)``, none where ``f = i = w`` and ``m >= 2 p - 1`` (the ranks end one after the other
    as they began, and the optimizer does not wait for all); rank ``r`` holds ``2 (p - r) - 1`` microbatches and up to
    ``2 r`` more for the weights. Qi et al. 2023 (2401.10241), section 2.2, figure 3.
    """
    orders = []
    for rank in range(num_ranks):
        forward, backward = passes(rank, num_ranks, num_microbatches, 1, 1)
        orders.append(tuple(split(forward, backward, 2 * (num_ranks - rank) - 2, 2 * rank)))
    return Schedule("zb-h2", tuple(orders), (dealt(num_ranks, 1),), num_microbatches)


def two_stage_backward(num_ranks: int, num_microbatches: int) -> Schedule:
    """1F1B whose gradients of weights wait for the drain: one in each gap between backwards, the rest at the end.

    Bubble ``(p - 1)(f + i - w)`` where ``f = i = w``; what the weights' gradients need is held for all ``m``
    microbatches. 2BP, Rae et al. 2024 (2405.18047), section 3, figure 1.
    """

    def order(rank: int) -> tuple[Action, ...]:
        fill = min(num_ranks - rank, num_microbatches)
        actions = [Action("F", rank, i) for i in range(fill)]
        for i in range(num_microbatches):
            actions.append(Action("I", rank, i))
            forward, weight = i + fill, i + fill - num_microbatches
            actions.append(Action("F", rank, forward) if weight < 0 else Action("W", rank, weight))
        return (*actions, *(Action("W", rank, i) for i in range(fill, num_microbatches)))

    orders = tuple(order(rank) for rank in range(num_ranks))
    return Schedule("2bp", orders, (dealt(num_ranks, 1),), num_microbatches)


def blockwise(num_ranks: int, num_microbatches: int, num_chunks: int) -> Schedule:
    """Breadth-first over units of at least ``2 p - 1`` microbatches, with gradients of weights where ranks would wait.

    Of every unit, ``2 (p - 1)`` gradients of weights wait: rank ``r`` runs ``2 r`` of them before the next unit's
    forwards and the others before its backwards, so only the first unit has a bubble: ``(p - 1)(f + i) / v`` where
    ``f = i = w``. A rank holds a unit of ``m // (m // (2 p - 1))`` microbatches, rounded up. ZeroPP, Tang et al. 2024
    (2402.03791), section 3; which gradients wait is this function's rule.
    """
    units = max(1, num_microbatches // (2 * num_ranks - 1))
    bounds = [num_microbatches * unit // units for unit in range(units + 1)]
    orders = []
    for rank in range(num_ranks):
        stages = range(rank, num_ranks * num_chunks, num_ranks)
        order: list[Action] = []
        late: list[Action] = []
        for first, end in pairwise(bounds):
            order += late[: 2 * rank]
            order += [Action("F", stage, i) for stage in stages for i in range(first, end)]
            order += late[2 * rank :]
            backward = [(stage, i) for stage in reversed(stages) for i in range(first, end)]
            halves = split([], backward, 0, 2 * (num_ranks - 1))
            keep = len(halves) - min(2 * (num_ranks - 1), len(backward))
            order, late = order + halves[:keep], halves[keep:]
        orders.append((*order, *late))
    return Schedule("zeropp", tuple(orders), (dealt(num_ranks, num_chunks),), num_microbatches)


def split(forward: list[tuple[int, int]], backward: list[tuple[int, int]], fill: int, delay: int) -> list[Action]:
    """One forward, one gradient of an input, one of weights: ``fill`` forwards ahead, weights ``delay`` behind.

    Args:
        forward, backward: (stage, microbatch) in the order of their passes.
    """
    order = [Action("F", *slice_) for slice_ in forward[:fill]]
    for i, slice_ in enumerate(backward):
        order += [Action("F", *forward[i + fill])] if i + fill < len(forward) else []
        order.append(Action("I", *slice_))
        order += [Action("W", *backward[i - delay])] if i >= delay else []
    return order + [Action("W", *slice_) for slice_ in backward[max(0, len(backward) - delay) :]]
