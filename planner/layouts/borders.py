"""Convolution and pooling over sharded positions: which rows a rank reads, and who holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner import ops as families
from planner.graph import Op
from planner.layouts.cuts import Indices, in_runs
from planner.layouts.placements import Shape
from planner.layouts.rules.arguments import ints_at


@dataclass(frozen=True)
class Window:
    """What an element of a convolution's or pooling's result reads along one dim."""

    size: int
    stride: int
    padding: int
    dilation: int

    def reach(self, start: int, count: int) -> tuple[int, int]:
        """Rows [first, end) that ``count`` results from ``start`` on read; some may be padding."""
        first = start * self.stride - self.padding
        return first, first + (count - 1) * self.stride + self.dilation * (self.size - 1) + 1


def window(op: Op, dim: int, shapes: Sequence[Shape]) -> Window:
    """Of the dim of its argument, from the arguments size, stride, padding and dilation."""
    convolution = op.name in families.CONVOLUTION
    sizes = shapes[op.inputs[1]][2:] if convolution else ints_at(op, 1)
    stride, padding, dilation = (ints_at(op, place) for place in ((3, 4, 5) if convolution else (2, 3, 4)))
    at = dim - 2
    size = sizes[min(at, len(sizes) - 1)]
    return Window(
        size=size,
        stride=_at(stride, at, 1 if convolution else size),
        padding=_at(padding, at, 0),
        dilation=_at(dilation, at, 1) if convolution or op.name.startswith("max_pool") else 1,
    )


def _at(given: tuple[int, ...], place: int, default: int) -> int:
    return given[min(place, len(given) - 1)] if given else default


class Rows(NamedTuple):
    """What a rank reads along a dim, and what crosses its borders."""

    reads: tuple[tuple[int, int, tuple[int, int]], ...]
    """Per run of own results: first row and end of what their windows read, and rows to pad before and behind."""
    taken: list[int]
    """Own rows to send, by their places, rank by rank."""
    sent: list[int]
    got: list[int]
    """How many go to every rank of the axis, and come from it."""
    places: list[int]
    """Of every row that is read: its place among the own ones and those that come, which stand behind them."""


def border(reaching: Window, held: Sequence[Indices], made: Sequence[Indices], length: int, own: int) -> Rows:
    """What the rank at ``own`` of an axis reads and sends.

    Args:
        held, made: per rank, the rows that it holds of the argument, and those that it makes of the result.
        length: of the argument's dim.
    """
    reads = [tuple(_reads(reaching, start, count, length) for start, count in in_runs(rows)) for rows in made]
    wanted = [np.concatenate([np.arange(a, b) for a, b, _ in of_rank]) for of_rank in reads]
    missing = [np.setdiff1d(rows, here) for rows, here in zip(wanted, held, strict=True)]
    sent = [np.intersect1d(held[own], rows) for rows in missing]
    got = [np.intersect1d(rows, missing[own]) for rows in held]
    here = np.concatenate([held[own], *got])
    order = np.argsort(here)
    return Rows(
        reads=reads[own],
        taken=np.searchsorted(held[own], np.concatenate(sent)).tolist(),
        sent=[len(rows) for rows in sent],
        got=[len(rows) for rows in got],
        places=order[np.searchsorted(here, wanted[own], sorter=order)].tolist(),
    )


def _reads(reaching: Window, start: int, count: int, length: int) -> tuple[int, int, tuple[int, int]]:
    first, end = reaching.reach(start, count)
    return max(0, first), min(length, end), (max(0, -first), max(0, end - length))
