"""Every move of small tensors by real processes, against where the tensor's elements belong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from planner.graph import Dim
from planner.layouts.placements import REPLICATE, Layout, Placement, Shape, local_shape, parse
from planner.layouts.redistribution import Move, absolute, moves
from planner.runtime.moves import move
from planner.runtime.parts import lay, part_shape, positions, reordered, sequences_of, zigzag_order
from tests.planner.runtime.counting import Counting
from tests.planner.runtime.gloo import run_ranks
from tests.planner.runtime.meshes_by_hand import axis_groups
from tests.planner.runtime.rank_runs import alone
from tests.planner.solvers.block_layout import ranks

Sizes = tuple[int, ...]
TEXTS = ("R", "B", "P", "S(0)", "S(1)", "S(0/2)", "S(0/4)", "S(1/3)", "S(2)")
SHAPES: tuple[Shape, ...] = ((8, 12, 2), (5, 6, 3), (4, 7, 1))
MOST = 400
"""Steps of one launch."""
MESHES: tuple[Sizes, ...] = ((2,), (3,), (4,), (2, 2))


def starts(shape: Shape, sizes: Sizes) -> Iterator[Layout]:
    """Layouts to move from, in absolute form, each once."""
    placements = [parse(text) for text in TEXTS]
    fitting = [p for p in placements if p.kind != "S" or shape[p.dim] % p.chunks == 0]
    first = [(p,) for p in fitting]
    every = first if len(sizes) == 1 else [(a, b) for a in fitting for b in fitting]
    found = (absolute(layout, shape, sizes) for layout in every)
    yield from dict.fromkeys(layout for layout in found if layout is not None)


@cache
def steps(sizes: Sizes) -> tuple[tuple[Shape, Move], ...]:
    placements = [[parse(text) for text in TEXTS]] * len(sizes)
    fits = lambda p, shape: p.kind != "S" or shape[p.dim] % p.chunks == 0  # noqa: E731
    every = [
        (shape, step)
        for shape in SHAPES
        for start in starts(shape, sizes)
        for step in moves(start, shape, sizes, [[p for p in own if fits(p, shape)] for own in placements])
    ]
    return tuple(every[:: 1 + len(every) // MOST])


def whole(shape: Shape, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(sizes: Sizes) -> list[tuple[Tensor, Tensor, list[tuple[str, int]], list[tuple[str, int]]]]:
    """Per step: what the rank ends with, its gradient of what it began with, and what went over the network."""
    mesh, found = axis_groups(*sizes), []
    for shape, step in steps(sizes):
        at = dist.get_rank()
        part = ranks.lay(whole(shape, 1), step.source, sizes)[at].requires_grad_()
        given = ranks.lay(whole(shape, 2), tuple(p.gradient for p in step.target), sizes)[at]
        with Counting() as there:
            after = move(part, step, shape, mesh)
        with Counting() as back:
            (grad,) = torch.autograd.grad(after, part, given)
        found.append((after.detach(), grad, there.seen, back.seen))
    return found


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_move_and_its_adjoint(sizes: Sizes) -> None:
    found = run_ranks(len(ranks.moving.ranks(sizes)), moved, sizes)
    kinds: Counter[str] = Counter()
    for i, (shape, step) in enumerate(steps(sizes)):
        after, grads, there, back = zip(*(of_rank[i] for of_rank in found), strict=True)
        assert ranks.close(ranks.put_together(after, step.target, shape, sizes), whole(shape, 1)), step
        source = tuple(p.gradient for p in step.source)
        assert ranks.close(ranks.put_together(grads, source, shape, sizes), whole(shape, 2)), step
        for name, seen in ((step.forward, there), (step.backward, back)):
            expected = [] if name == "local" else [name]
            assert all([collective for collective, _ in of_rank] == expected for of_rank in seen), step
            kinds[name] += 1
            if name in ("all_gather", "reduce_scatter", "all_reduce"):
                assert max(size for of_rank in seen for _, size in of_rank) == padded_bytes(step, shape, sizes), step
    assert all(kinds[name] > 10 for name in ("local", "all_gather", "reduce_scatter", "all_reduce", "all_to_all"))


def padded_bytes(step: Move, shape: Shape, sizes: Sizes) -> int:
    """Of the tensor over the whole axis, every part as long as the longest."""
    first = ranks.moving.ranks(sizes)[0]
    numel = 1
    sharded = step.source if step.source[step.axis].kind == "S" else step.target
    for indices in ranks.held(sharded, shape, sizes, first):
        numel *= len(indices)
    return 8 * numel * (sizes[step.axis] if sharded[step.axis].kind == "S" else 1)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_parts_of_what_every_rank_has(sizes: Sizes) -> None:
    for shape in SHAPES:
        for start in starts(shape, sizes):
            for rank in ranks.moving.ranks(sizes):
                mesh, x = alone(*sizes, rank=rank), whole(shape, 0)
                part = lay(x, start, mesh)
                indices = ranks.held(start, shape, sizes, rank)
                expected = x[torch.meshgrid(*indices, indexing="ij")]
                kept = all(p.kind != "P" or i == 0 for p, i in zip(start, rank, strict=True))
                assert torch.equal(part, expected if kept else torch.zeros_like(expected)), start
                assert part.is_contiguous() and part_shape(start, shape, mesh) == tuple(part.shape)
                for dim, own in enumerate(indices):
                    assert positions(start, shape, dim, mesh).tolist() == own.tolist()


def test_in_zigzag_order_every_rank_has_one_chunk_from_each_end() -> None:
    assert zigzag_order(3) == (0, 5, 1, 4, 2, 3)
    x = torch.arange(2 * 12 * 3).view(2 * 12, 3)  # two sequences of 12
    sequences = sequences_of((Dim(0, 1, per_batch=True), Dim(3)), 2)
    assert sequences == (2, 0)
    y = reordered(x, sequences, 3)
    assert torch.equal(reordered(y, sequences, 3, back=True), x)
    part = lay(y, (Placement("S", 0, 2),), alone(3, rank=(1,)))
    assert part[:, 0].div(3, rounding_mode="floor").tolist() == [2, 3, 8, 9, 14, 15, 20, 21]


def test_a_sequence_that_does_not_divide_stays_in_its_own_order() -> None:
    x = torch.arange(10)
    assert torch.equal(reordered(x, (1,), 2), x)
    assert torch.equal(reordered(x, (0,), 5), x)
    assert not torch.equal(reordered(x, (1,), 5), x)


def test_shapes_are_those_of_padded_shards_where_axes_divide() -> None:
    mesh = alone(2, 2, rank=(1, 1))
    placed = (Placement("S", 0), Placement("S", 1, 3))
    assert part_shape(placed, (8, 12), mesh) == local_shape((8, 12), placed, (2, 2)) == (4, 6)
    assert part_shape((REPLICATE, Placement("S", 0)), (5, 1), mesh) == (2, 1)
