"""From one layout to another: what one collective over one mesh axis can change, forward and backward.

**What moves.** Of a value, only three things cost communication: parts become the whole (all-gather), a sum is taken
(reduce-scatter into parts, all-reduce into wholes), parts become other parts (all-to-all). The rest is local: a whole
is sliced, a part is padded with zeros and so becomes a partial sum, and of equal copies one is kept and the others are
zeros. The gradient goes the other way, from the target's dual to the source's, by the same rules, so that each backward
collective is the adjoint of the forward one:

========== ================================ ================================ ================================
from, to   ``S``                            ``R``                            ``B``
========== ================================ ================================ ================================
``S``      all-to-all, all-to-all           all-gather, local                all-gather, reduce-scatter
``R``      local, all-gather                                                 local, all-reduce
``B``      local, local                     local, local
``P``      reduce-scatter, all-gather       all-reduce, local                all-reduce, all-reduce
========== ================================ ================================ ================================

To ``P``, all is local both ways. ``B`` is free to leave and ``P`` free to enter.

**Where an axis cuts.** Axes that shard one dim take digits of its index, which is a number in mixed radix: ``S(d/c)``
over ``n`` ranks is the digit between places ``c`` and ``c * n``, counted from the most significant. The outer of two
axes with ``S(0)`` takes places 1 to ``n``, the inner one those from ``n`` on, which is ``S(0/n)``. `absolute` writes a
layout with these places as its chunks. Then the axes are independent of each other and their order no longer matters:
whatever an axis does with its own digit, while the others keep theirs, is one collective over its own groups. So the
outer of two axes can be gathered first, ``(S(0), S(0)) -> (R, S(0/n))``, when each device still holds little.

A dim that its axes do not divide is cut as `torch.chunk` cuts, each part again by the next axis. Runs of different
lengths are no chunks, so an axis whose digit lies inside of such a cut stays until the cut is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.layouts.placements import Layout, Placement, Shape

Collective = Literal["local", "all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
"""What the ranks of one mesh axis do; ``local`` is no communication."""

_COLLECTIVES: dict[tuple[str, str], Collective] = {
    ("S", "R"): "all_gather",
    ("S", "S"): "all_to_all",
    ("P", "S"): "reduce_scatter",
    ("P", "R"): "all_reduce",
}


@dataclass(frozen=True, slots=True)
class Move:
    """One axis takes another placement."""

    axis: int
    source: Layout
    target: Layout
    """Both `absolute`, and different at ``axis`` alone."""
    forward: Collective
    backward: Collective


def collectives(source: Placement, target: Placement) -> tuple[Collective, Collective]:
    """What takes a value from one placement to another (not the same), and its gradient back.

    As a value ``B`` is ``R``; a gradient lies as `Placement.gradient` says, and goes from the target's to the source's.
    """
    return _of_value(source, target), _of_value(target.gradient, source.gradient)


def moves(
    layout: Layout, shape: Shape, sizes: Sequence[int], placements: Sequence[Sequence[Placement]]
) -> Iterator[Move]:
    """Every change of one axis of a layout.

    Args:
        layout: as `absolute` writes it.
        shape: of the whole tensor.
        sizes: of the mesh axes, outer to inner.
        placements: what each axis may take; ``S`` with the places of its digit as chunks. What overlaps with other
            axes' digits is left out.
    """
    for axis, choices in enumerate(placements):
        for placement in choices:
            target = (*layout[:axis], placement, *layout[axis + 1 :])
            if placement != layout[axis] and absolute(target, shape, sizes) == target:
                yield Move(axis, layout, target, *collectives(layout[axis], placement))


def absolute(layout: Layout, shape: Shape, sizes: Sequence[int]) -> Layout | None:
    """The layout with every ``S(d/c)`` counting the equal runs of the whole dim that it cuts, whatever other axes do.

    An axis whose runs are already cut by axes outside of it cuts what these leave of each: ``(S(0), S(0))`` on a mesh
    ``(2, 4)`` becomes ``(S(0), S(0/2))``. Where the outer axis hands out whole runs nothing changes:
    ``(S(0), S(0/8))``.

    Returns:
        The same for layouts that cut alike. ``None`` where the parts of an axis are not one digit: runs of unequal
        length, runs that are cut across their borders (``(S(1), S(1/3))`` on ``(2, 2)``), or a digit taken apart
        (``(S(0/2), S(0))`` on ``(2, 4)``).
    """
    places: list[Placement] = []
    digits: dict[int, list[tuple[int, int]]] = {}
    for placement, size in zip(layout, sizes, strict=True):
        if placement.kind != "S" or size == 1:
            places.append(placement)
            continue
        taken = digits.setdefault(placement.dim, [])
        place = _place(placement.chunks, size, shape[placement.dim], taken)
        if place is None:
            return None
        taken.append((place, place * size))
        taken.sort()
        places.append(placement if place == placement.chunks else Placement("S", placement.dim, place))
    if all(_equal_runs(shape[dim], taken) for dim, taken in digits.items()):
        return tuple(places)
    return None


def _of_value(source: Placement, target: Placement) -> Collective:
    kinds = (source.kind, "R" if target.kind == "B" else target.kind)
    return _COLLECTIVES.get(kinds, "local")


def _place(chunks: int, size: int, length: int, taken: list[tuple[int, int]]) -> int | None:
    """Where a digit of ``size`` values begins that cuts ``chunks`` runs of a dim, beside the sorted digits (start, end)
    of the axes outside; ``None`` where it would not be one digit."""
    place = chunks
    for start, end in taken:
        if start <= place < end:
            # Runs that are cut must be cut along their borders; equal ones are when cut first, whatever their length.
            if start < place and (end % place or length % end):
                return None
            place = end
    for start, end in taken:
        above, below = place % end == 0, start % (place * size) == 0
        if not (above or below):
            return None
    return place


def _equal_runs(length: int, taken: list[tuple[int, int]]) -> bool:
    """Whether a dim falls into equal runs wherever there is a gap before a digit."""
    previous = 1
    for start, end in taken:
        if start != previous and length % start:
            return False
        previous = end
    return True
