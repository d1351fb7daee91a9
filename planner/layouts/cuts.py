"""Which indices of a tensor's dims a rank holds.

In `absolute` form (`planner.layouts.redistribution`) an axis's ``S(d/c)`` over ``n`` ranks is one digit of the dim's
index, which every rank's part lacks. So a part's dim is ``(runs above the digit, what lies below it)``, and to gather
the axis is to put the digit between them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.layouts.placements import Layout, Shape
from planner.layouts.redistribution import absolute

Sizes = tuple[int, ...]
Indices = NDArray[np.int_]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where an axis's digit stands in a part's dim: ``(above, [digit,] own part of each run)``."""

    dim: int
    above: int
    parts: tuple[int, ...]
    """Length of each run's part by rank of the axis, as `torch.chunk` cuts."""

    @property
    def longest(self) -> int:
        return self.parts[0]

    @property
    def whole(self) -> int:
        return sum(self.parts)

    @property
    def even(self) -> bool:
        return self.parts[-1] == self.parts[0]


@cache
def cuts(layout: Layout, shape: Shape, sizes: Sizes, rank: Sizes) -> dict[int, Cut]:
    """The cut of every axis that shards, coarsest first; ``layout`` is absolute, ``rank`` one's coordinates."""
    found: dict[int, Cut] = {}
    for dim in range(len(shape)):
        runs, done, length, last = 1, 1, shape[dim], -1
        for axis in _axes(layout, dim, sizes):
            finer = layout[axis].chunks // done
            runs, length, done = runs * finer, length // finer, layout[axis].chunks * sizes[axis]
            found[axis] = Cut(dim, runs, chunked(length, sizes[axis]))
            length, last = found[axis].parts[rank[axis]], axis
        for axis in _axes(layout, dim, sizes):
            if axis != last:  # finer digits are missing in each part: equal ones, or there would be none
                below = runs * length // found[axis].above
                found[axis] = Cut(dim, found[axis].above, (below,) * sizes[axis])
    return found


def _axes(layout: Layout, dim: int, sizes: Sizes) -> list[int]:
    """Axes that shard a dim, coarsest digit first."""
    along = (a for a, p in enumerate(layout) if p.kind == "S" and p.dim == dim and sizes[a] > 1)
    return sorted(along, key=lambda axis: layout[axis].chunks)


def chunked(length: int, count: int) -> tuple[int, ...]:
    """Lengths of the parts that `torch.chunk` makes, and of empty ones behind them."""
    longest = -(-length // count)
    return tuple(max(0, min(longest, length - i * longest)) for i in range(count))


@cache
def placed_as(layout: Layout, shape: Shape, sizes: Sizes) -> Layout:
    """The layout in absolute form."""
    placed = absolute(layout, shape, sizes)
    assert placed is not None, f"{[str(p) for p in layout]} of {shape} over {sizes}: axes cut across each other"
    return placed


def held_shape(layout: Layout, shape: Shape, sizes: Sizes, rank: Sizes) -> Shape:
    """Shape of what a rank holds (not padded); ``layout`` as it is written anywhere."""
    local = list(shape)
    for axis, cut in cuts(placed_as(layout, shape, sizes), shape, sizes, rank).items():
        local[cut.dim] = cut.above * cut.parts[rank[axis]]
    return tuple(local)


def held_indices(layout: Layout, shape: Shape, dim: int, sizes: Sizes, rank: Sizes) -> Indices:
    """Which indices of a dim of the whole a rank holds, in its order."""
    held: Indices = np.arange(shape[dim])
    for axis, cut in cuts(placed_as(layout, shape, sizes), shape, sizes, rank).items():
        if cut.dim == dim:
            runs = held.reshape(cut.above, -1)
            parts = chunked(runs.shape[1], sizes[axis])
            held = runs[:, sum(parts[: rank[axis]]) : sum(parts[: rank[axis] + 1])].reshape(-1)
    return held


def in_runs(indices: Indices) -> tuple[tuple[int, int], ...]:
    """(start, length) of the runs of consecutive numbers."""
    starts = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    return tuple((int(indices[a]), b - a) for a, b in pairwise(starts) if b > a)
