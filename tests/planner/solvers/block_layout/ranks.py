"""Tensors on the ranks of a mesh of several axes, and collectives between them that autograd can follow.

A tensor is one part per rank, outer axis first. Which indices a rank holds is taken from the tests of redistribution. A
move does what the collective does that it names, and backward what the other does that it names for that pass, whatever
autograd would have made of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planner.layouts.placements import Layout, Shape
from planner.layouts.redistribution import Collective, Move, absolute
from tests.planner.layouts import test_redistribution as moving
from tests.planner.layouts.strategies.pieces import close as close
from tests.planner.layouts.strategies.pieces import noise

Parts = tuple[Tensor, ...]
Sizes = tuple[int, ...]


def lay(whole: Tensor, layout: Layout, sizes: Sizes) -> Parts:
    """Parts, copies, or terms of a sum: random ones on all ranks but the first."""
    summed = [axis for axis, placement in enumerate(layout) if placement.kind == "P"]
    random = torch.Generator().manual_seed(0)
    members = moving.ranks(tuple(sizes[axis] for axis in summed))
    terms = {member: noise(whole, random) for member in members[1:]}
    terms[members[0]] = whole.detach() - sum(terms.values()) if terms else whole.detach()
    return tuple(
        _taken(terms[tuple(rank[axis] for axis in summed)], layout, sizes, rank) for rank in moving.ranks(sizes)
    )


def held(layout: Layout, shape: Shape, sizes: Sizes, rank: Sizes) -> list[Tensor]:
    """Which indices of each dim a rank holds."""
    return [torch.from_numpy(np.ascontiguousarray(i)) for i in _held(layout, shape, sizes, rank)]


def _taken(whole: Tensor, layout: Layout, sizes: Sizes, rank: Sizes) -> Tensor:
    for dim, indices in enumerate(held(layout, tuple(whole.shape), sizes, rank)):
        whole = whole.index_select(dim, indices)
    return whole.clone()


def put_together(parts: Sequence[Tensor], layout: Layout, shape: Shape, sizes: Sizes) -> Tensor:
    """The whole tensor; that copies are equal is asserted."""
    whole = torch.zeros(shape, dtype=parts[0].dtype)
    places = dict(zip(moving.ranks(sizes), parts, strict=True))
    for rank, part in places.items():
        first = tuple(0 if placement.kind in "RB" else i for placement, i in zip(layout, rank, strict=True))
        if rank != first:
            assert close(part, places[first]), f"ranks {first} and {rank} differ, {layout}"
        elif shape:
            at = torch.meshgrid(*held(layout, shape, sizes, rank), indexing="ij")
            whole[at] = whole[at] + part
        else:
            whole = whole + part
    return whole


def move(parts: Parts, step: Move, shape: Shape, sizes: Sizes) -> Parts:
    """One move, forward and (in autograd's backward pass) back."""
    if not parts[0].is_floating_point():
        return _collective(step.forward, parts, step.axis, step.source, step.target, shape, sizes)
    return tuple(_Moved.apply(step, shape, sizes, *parts))  # type: ignore[no-untyped-call]


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Move, shape: Shape, sizes: Sizes, *parts: Tensor) -> Parts:
        ctx.given = step, shape, sizes
        return _collective(step.forward, parts, step.axis, step.source, step.target, shape, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        step, shape, sizes = ctx.given
        source, target = (tuple(p.gradient for p in layout) for layout in (step.source, step.target))
        return None, None, None, *_collective(step.backward, grads, step.axis, target, source, shape, sizes)


def _collective(
    name: Collective, parts: Sequence[Tensor], axis: int, source: Layout, target: Layout, shape: Shape, sizes: Sizes
) -> Parts:
    """Every member of a group gets of the others what it is to hold; what nobody has is no number."""
    adds = name in ("all_reduce", "reduce_scatter")
    source, target = moving.as_values(source), moving.as_values(target)
    padded = name == "local" and target[axis].kind == "P" and source[axis].kind != "P"
    after = []
    for rank in moving.ranks(sizes):
        found = np.full([len(i) for i in _held(target, shape, sizes, rank)], 0.0 if adds or padded else np.nan)
        group = [rank] if name == "local" else [(*rank[:axis], i, *rank[axis + 1 :]) for i in range(sizes[axis])]
        if padded and source[axis].kind == "R" and rank[axis]:
            group = []  # of equal copies the first is kept
        for member in group:
            there, here = _common(target, rank, source, member, shape, sizes)
            part = parts[moving.ranks(sizes).index(member)].detach().double().numpy()[here]
            found[there] = found[there] + part if adds else part
        after.append(torch.from_numpy(found).to(parts[0].dtype))
    return tuple(after)


@cache
def _held(layout: Layout, shape: Shape, sizes: Sizes, rank: Sizes) -> list[moving.Indices]:
    written = absolute(layout, shape, sizes) != layout
    return (moving.in_words if written else moving.held)(layout, shape, sizes, rank)


@cache
def _common(
    target: Layout, rank: Sizes, source: Layout, member: Sizes, shape: Shape, sizes: Sizes
) -> tuple[tuple[moving.Indices, ...], tuple[moving.Indices, ...]]:
    """Where what a member has stands in a rank's part and in its own."""
    pairs = zip(_held(target, shape, sizes, rank), _held(source, shape, sizes, member), strict=True)
    places = [np.intersect1d(wanted, mine, assume_unique=True, return_indices=True)[1:] for wanted, mine in pairs]
    return np.ix_(*(there for there, _ in places)), np.ix_(*(here for _, here in places))


def assemble(parts: Parts, layout: Layout, shape: Shape, sizes: Sizes) -> Tensor:
    """The whole tensor; its gradient is laid as the gradient of ``layout`` lies."""
    if not parts[0].is_floating_point():
        return put_together(parts, layout, shape, sizes)
    found: Tensor = _Assembled.apply(layout, shape, sizes, *parts)  # type: ignore[no-untyped-call]
    return found


def spread(whole: Tensor, layout: Layout, sizes: Sizes) -> Parts:
    """Lays a tensor; of the parts' gradients the whole's is put together as the gradient of ``layout`` lies."""
    if not whole.is_floating_point():
        return lay(whole, layout, sizes)
    return tuple(_Spread.apply(layout, sizes, whole))  # type: ignore[no-untyped-call]


class _Assembled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, shape: Shape, sizes: Sizes, *parts: Tensor) -> Tensor:
        ctx.given = layout, sizes
        return put_together(parts, layout, shape, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layout, sizes = ctx.given
        return None, None, None, *lay(grad, tuple(p.gradient for p in layout), sizes)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, sizes: Sizes, whole: Tensor) -> Parts:
        ctx.given = layout, sizes, tuple(whole.shape)
        return lay(whole, layout, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        layout, sizes, shape = ctx.given
        return None, None, put_together(grads, tuple(p.gradient for p in layout), shape, sizes)


def once(parts: Parts, layout: Layout) -> Parts:
    """The same; where ranks that communicate are one graph, the gradient of copies counts on the first alone."""
    if all(placement.kind != "R" for placement in layout) or not parts[0].requires_grad:
        return parts
    return tuple(_Once.apply(*parts))  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Parts:
        return tuple(part.clone() for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], *(torch.zeros_like(grad) for grad in grads[1:])
