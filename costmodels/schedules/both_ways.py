"""Schedules whose ranks hold the begin and the end of a pass: V-shaped (two chunks, down the ranks and up again) and
bidirectional (two copies, microbatches from both ends). ``p`` ranks, ``m`` microbatches; ``f``, ``b``, ``i`` and ``w``
are seconds of one stage: forward, whole backward, gradients of input and weights."""

from __future__ import annotations

from collections.abc import Sequence

from costmodels.schedules.actions import Action, Entry, Pair, Placement
from costmodels.schedules.schedule import Schedule


def zb_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """A V of two chunks with halved backwards: as little memory as 1F1B, no bubble where ``f = i = w``.

    Bubble 0 then and for ``m >= 2 p - 1`` (every rank runs without a gap, one begins and ends after the other); a rank
    holds ``2 p`` slices of one stage, that is ``p`` microbatches. Qi et al. 2023 (2401.10241), section 6, figure 7.
    """
    orders = tuple(tuple(_zb_v_order(rank, num_ranks, num_microbatches)) for rank in range(num_ranks))
    return Schedule("zb-v", orders, (_v_shape(num_ranks),), num_microbatches)


def dualpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Microbatches from both ends, even ones down the ranks and odd ones up; a rank holds two stages' parameters.

    Bubble ``(p / 2 - 1)(fb + b - 3 w)`` with ``fb`` seconds of an overlapped pair; a rank holds at most ``p + 1``
    microbatches. DeepSeek-V3 (2412.19437), section 3.2.1, table 2, figure 5.
    """
    down = tuple(range(num_ranks))
    orders = []
    for rank in range(num_ranks):
        slots = [(rank, range(0, num_microbatches, 2)), (num_ranks - 1 - rank, range(1, num_microbatches, 2))]
        near = slots if rank < num_ranks // 2 else slots[::-1]
        orders.append(_dual_order(min(rank, num_ranks - 1 - rank), num_ranks // 2, _Rank(*near)))
    return Schedule("dualpipe", tuple(orders), (down, down[::-1]), num_microbatches)


def dualpipe_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """DualPipe cut in half: a V of two chunks on half of the ranks, every parameter once.

    Bubble ``(p - 1)(fb + b - 3 w)`` with ``fb`` seconds of an overlapped pair; a rank holds at most ``2 p + 1`` slices
    of one stage. Sea AI Lab's "cut in half" (2025), as in the repository deepseek-ai/DualPipe.
    """
    passing = range(num_microbatches)
    orders = tuple(
        _dual_order(rank, num_ranks, _Rank((rank, passing), (2 * num_ranks - 1 - rank, passing)))
        for rank in range(num_ranks)
    )
    return Schedule("dualpipe-v", orders, (_v_shape(num_ranks),), num_microbatches)


class _Rank:
    """A rank's order while it is written. It has two slots, each a stage and the microbatches that pass there."""

    def __init__(self, *slots: tuple[int, Sequence[int]]) -> None:
        self.slots = slots
        self.forwards = [0, 0]
        self.backwards = [0, 0]
        self.order: list[Entry] = []
        self.owed: list[tuple[int, Action]] = []
        """Slots and gradients of weights whose inputs' gradients are done."""

    def forward(self, slot: int) -> None:
        """The slot's next microbatch forward."""
        self.order.append(self._forward(slot))

    def backward(self, slot: int) -> None:
        """The slot's next microbatch backward."""
        self.order.append(self._backward("B", slot))

    def pair(self, slot: int) -> None:
        """A forward of the slot overlapped with a backward of the other."""
        self.order.append(Pair(self._forward(slot), self._backward("B", 1 - slot)))

    def half(self, slot: int) -> None:
        """The slot's next gradient of an input; that of the weights is owed."""
        action = self._backward("I", slot)
        self.order.append(action)
        self.owed.append((slot, action._replace(kind="W")))

    def weight(self, slot: int | None = None) -> None:
        """The oldest gradient of weights that is owed, by the slot if one is named."""
        at = next(i for i, (owing, _) in enumerate(self.owed) if slot in (None, owing))
        self.order.append(self.owed.pop(at)[1])

    def _forward(self, slot: int) -> Action:
        stage, microbatches = self.slots[slot]
        self.forwards[slot] += 1
        return Action("F", stage, microbatches[self.forwards[slot] - 1])

    def _backward(self, kind: str, slot: int) -> Action:
        stage, microbatches = self.slots[slot]
        self.backwards[slot] += 1
        return Action(kind, stage, microbatches[self.backwards[slot] - 1])


def _zb_v_order(place: int, num_ranks: int, num_microbatches: int) -> list[Entry]:
    """Fill, alternate, drain; written for at least ``2 p - 1`` microbatches and, of fewer, without the others."""
    count = max(2 * num_ranks - 1, num_microbatches)
    rank = _Rank((place, range(count)), (2 * num_ranks - 1 - place, range(count)))

    def whole(slot: int) -> None:
        rank.half(slot)
        rank.weight()

    for _ in range(2 * (num_ranks - place) - 1):
        rank.forward(0)
    for _ in range(place):
        rank.forward(1)
        rank.forward(0)
    for _ in range(num_ranks - place):
        rank.forward(1)
        whole(1)
    while rank.forwards[1] < count:
        if rank.forwards[0] < count:
            rank.forward(0)
        whole(0)
        rank.forward(1)
        whole(1)
    for _ in range(place):
        rank.half(0)
        rank.half(1)
    for _ in range(num_ranks - place):
        rank.half(0)
        rank.weight(0)
    for slot in (1,) * place + (0,) * place:
        rank.weight(slot)
    return [action for action in rank.order if isinstance(action, Action) and action.microbatch < num_microbatches]


def _dual_order(place: int, depth: int, rank: _Rank) -> tuple[Entry, ...]:
    """The order at a place of a V of the given depth: slot 0 leads to the turn, slot 1 comes back from it."""
    to_turn = depth - place - 1
    for _ in range(2 * to_turn):
        rank.forward(0)
    for _ in range(place + 1):
        rank.forward(0)
        rank.forward(1)
    for _ in range(to_turn):
        rank.half(1)
        rank.weight()
        rank.forward(1)
    for i in range(len(rank.slots[0][1]) - 2 * depth + place + 1):
        if i == 0 and to_turn == 0:  # overlapped, the turn's first backward would hold up the whole pipeline
            rank.forward(0)
            rank.backward(1)
        else:
            rank.pair(0)
        rank.pair(1)
    for _ in range(to_turn):
        rank.backward(1)
        rank.pair(1)
    for i in range(2 * (place + 1)):
        (rank.half if i > place else rank.backward)(1 - i % 2)
    for _ in range(to_turn):
        rank.weight()
        rank.half(0)
    for _ in range(place + 1):
        rank.weight()
    return tuple(rank.order)


def _v_shape(num_ranks: int) -> Placement:
    down = tuple(range(num_ranks))
    return down + down[::-1]
