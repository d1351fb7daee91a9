"""One redistribution step as one rank does it: what it sends, what it makes of what it gets, and the adjoint backward.

A step changes the placement of one axis. The value goes from ``source`` to ``target``, its gradient from the dual of
``target`` to the dual of ``source``, each by one collective over the axis's group or by none; the table is in
`planner.layouts.redistribution`. Collectives are functional, so that compilers and whoever counts them see each once.
They work on what is contiguous, with the ranks' pieces one behind the other: where the axis cuts a dim that others
precede, one copy brings the pieces together. Parts of unequal length are padded for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from planner.layouts.cuts import Cut, Indices, cuts
from planner.layouts.placements import Layout, Shape
from planner.layouts.redistribution import Move
from planner.runtime.parts import AxisGroups, positions

Change = Callable[[Tensor], Tensor]
FUNCTIONAL = torch.ops._c10d_functional


def move(part: Tensor, step: Move, shape: Shape, mesh: AxisGroups) -> Tensor:
    """One step of a redistribution on this rank.

    Args:
        part: what the rank holds in ``step.source``.
        shape: of the whole tensor.
    """
    return mover(step, shape, mesh)(part)


@cache
def mover(step: Move, shape: Shape, mesh: AxisGroups) -> Change:
    """`move` with everything worked out but the tensor."""
    if mesh.sizes[step.axis] == 1:
        return _same
    there = _change(step.axis, step.source, step.target, shape, mesh)
    start, end = (tuple(p.gradient for p in layout) for layout in (step.target, step.source))
    back = _change(step.axis, start, end, shape, mesh)
    if there is back is _same:
        return _same

    def moved(part: Tensor) -> Tensor:
        if not part.is_floating_point():
            return there(part)
        found: Tensor = _Moved.apply(part, there, back)
        return found

    return moved


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, there: Change, back: Change) -> Tensor:
        ctx.back = back
        return there(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.back(grad), None, None


def _same(part: Tensor) -> Tensor:
    return part


def _change(axis: int, source: Layout, target: Layout, shape: Shape, mesh: AxisGroups) -> Change:
    """What one rank does with a value that goes from one layout to another."""
    own, name = mesh.coordinates[axis], mesh.group_name(axis)
    before, after = source[axis].kind.replace("B", "R"), target[axis].kind.replace("B", "R")
    have = cuts(source, shape, mesh.sizes, mesh.coordinates).get(axis)
    want = cuts(target, shape, mesh.sizes, mesh.coordinates).get(axis)
    match before, after:
        case "S", "R":
            assert have is not None
            return lambda part: gather(part, have, name)
        case "P", "S":
            assert want is not None
            return lambda part: scatter_sum(part, want, own, name)
        case "P", "R":
            return lambda part: sum_over(part, name)
        case "S", "S":
            assert have is not None and want is not None
            if have.dim == want.dim:
                return _exchange_along(axis, source, target, shape, mesh)
            return lambda part: exchange(part, have, want, own, name)
        case "R", "S":
            assert want is not None
            return lambda part: cut_out(part, want, own)
        case "S", "P":
            assert have is not None
            return lambda part: pad_out(part, have, own)
        case "R", "P" if own:
            return torch.zeros_like
    return _same


def gather(part: Tensor, cut: Cut, name: str) -> Tensor:
    """All-gather: the parts of a dim one behind the other in each run."""
    runs = _padded(part.unflatten(cut.dim, (cut.above, part.shape[cut.dim] // cut.above)), cut.dim + 1, cut.longest)
    count = len(cut.parts)
    every = wait(FUNCTIONAL.all_gather_into_tensor(runs.contiguous(), count, name))
    return _joined(every.view(count, *runs.shape), cut)


def scatter_sum(part: Tensor, cut: Cut, own: int, name: str) -> Tensor:
    """Reduce-scatter: the own part of the sum of what all ranks hold."""
    pieces = _pieces(part, cut).contiguous()
    summed = wait(FUNCTIONAL.reduce_scatter_tensor(pieces.flatten(0, 1), "sum", len(cut.parts), name))
    return summed.narrow(cut.dim + 1, 0, cut.parts[own]).flatten(cut.dim, cut.dim + 1)


def sum_over(part: Tensor, name: str, op: str = "sum") -> Tensor:
    """All-reduce."""
    return wait(FUNCTIONAL.all_reduce(part.contiguous(), op, name))


def exchange(part: Tensor, have: Cut, want: Cut, own: int, name: str) -> Tensor:
    """All-to-all: from parts of one dim to parts of another, pieces of equal size."""
    runs = part.unflatten(have.dim, (have.above, have.parts[own]))
    padded = _padded(runs, have.dim + 1, have.longest).flatten(have.dim, have.dim + 1)
    pieces = _pieces(padded, want)
    pieces = pieces.flatten(want.dim + 1, want.dim + 2).contiguous()
    got = exchanged(pieces, name)
    got = got.unflatten(want.dim + 1, (want.above, want.longest)).narrow(want.dim + 2, 0, want.parts[own])
    got = got.flatten(want.dim + 1, want.dim + 2).unflatten(have.dim + 1, (have.above, have.longest))
    return _joined(got, have)


def _exchange_along(axis: int, source: Layout, target: Layout, shape: Shape, mesh: AxisGroups) -> Change:
    """All-to-all between two ways to cut one dim: every element goes where it belongs."""
    dim, own, name = source[axis].dim, mesh.coordinates[axis], mesh.group_name(axis)
    ranks = [mesh.moved_to(axis, rank) for rank in range(mesh.sizes[axis])]
    held = [positions(source, shape, dim, rank) for rank in ranks]
    wanted = [positions(target, shape, dim, rank) for rank in ranks]
    sent = [np.intersect1d(held[own], there) for there in wanted]
    got = [np.intersect1d(here, wanted[own]) for here in held]
    taken = np.concatenate([_places(held[own], elements) for elements in sent]).tolist()
    order = np.argsort(np.concatenate([_places(wanted[own], elements) for elements in got])).tolist()
    splits = [len(elements) for elements in got], [len(elements) for elements in sent]

    def change(part: Tensor) -> Tensor:
        pieces = part.movedim(dim, 0).index_select(0, torch.tensor(taken, dtype=torch.int64, device=part.device))
        received = wait(FUNCTIONAL.all_to_all_single(pieces, *splits, name))
        return received.index_select(0, torch.tensor(order, dtype=torch.int64, device=part.device)).movedim(0, dim)

    return change


def _places(within: Indices, elements: Indices) -> Indices:
    order = np.argsort(within)
    return order[np.searchsorted(within, elements, sorter=order)]


def cut_out(part: Tensor, cut: Cut, own: int) -> Tensor:
    """The own part of a dim that is there whole; a tensor of its own, so that the whole can be freed."""
    runs = part.unflatten(cut.dim, (cut.above, cut.whole)).narrow(cut.dim + 1, sum(cut.parts[:own]), cut.parts[own])
    return runs.clone(memory_format=torch.contiguous_format).flatten(cut.dim, cut.dim + 1)


def pad_out(part: Tensor, cut: Cut, own: int) -> Tensor:
    """The whole dim with zeros where others hold their parts."""
    runs = part.unflatten(cut.dim, (cut.above, cut.parts[own]))
    before = sum(cut.parts[:own])
    pads = (0, 0) * (runs.dim() - 2 - cut.dim) + (before, cut.whole - before - cut.parts[own])
    return F.pad(runs, pads).flatten(cut.dim, cut.dim + 1)


def exchanged(pieces: Tensor, name: str) -> Tensor:
    """Piece ``i`` of the first dim goes to rank ``i``."""
    ones = [1] * pieces.shape[0]
    return wait(FUNCTIONAL.all_to_all_single(pieces, ones, ones, name))


def wait(started: Tensor) -> Tensor:
    """A collective's result once it is there."""
    found: Tensor = FUNCTIONAL.wait_tensor(started)
    return found


def _padded(runs: Tensor, dim: int, length: int) -> Tensor:
    missing = length - runs.shape[dim]
    return F.pad(runs, (0, 0) * (runs.dim() - 1 - dim) + (0, missing)) if missing else runs


def _pieces(part: Tensor, cut: Cut) -> Tensor:
    """``[rank, ..., above, longest, ...]``: what each rank is to hold of a dim."""
    count = len(cut.parts)
    runs = _padded(part.unflatten(cut.dim, (cut.above, cut.whole)), cut.dim + 1, count * cut.longest)
    return runs.unflatten(cut.dim + 1, (count, cut.longest)).movedim(cut.dim + 1, 0)


def _joined(pieces: Tensor, cut: Cut) -> Tensor:
    """Of ``[rank, ..., above, longest, ...]`` the dim again."""
    between = pieces.movedim(0, cut.dim + 1)
    if not cut.even:
        between = between.flatten(cut.dim + 1, cut.dim + 2).narrow(cut.dim + 1, 0, cut.whole)
        return between.flatten(cut.dim, cut.dim + 1)
    return between.flatten(cut.dim, cut.dim + 2)
