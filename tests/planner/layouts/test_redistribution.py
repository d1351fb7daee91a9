"""Moves by execution: every rank of a small mesh holds its part, and the collectives are done as they are defined."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import ceil, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.layouts.placements import Layout, Placement, Shape, local_shape, parse
from planner.layouts.redistribution import Collective, absolute, collectives, moves

Array = NDArray[np.float64]
Indices = NDArray[np.int_]
Sizes = tuple[int, ...]
Ranks = Mapping[Sizes, Array]
"""What every rank holds, by its coordinates."""

PLACEMENTS = [parse(text) for text in ("R", "B", "P", *(f"S({d}/{c})" for d in (0, 1) for c in (1, 2, 3, 4, 6)))]
MESHES = st.sampled_from([(2,), (3,), (4,), (2, 2), (2, 3), (3, 2), (4, 2), (2, 4), (1, 2), (2, 2, 2), (2, 1, 3)])
SHAPES = st.tuples(st.sampled_from([1, 2, 3, 5, 6, 8, 10, 12, 16, 24]), st.sampled_from([2, 4, 6, 7, 12]))


def layout(text: str) -> Layout:
    return tuple(parse(word) for word in text.split())


@st.composite
def cases(draw: st.DrawFn) -> tuple[Shape, Sizes, Layout]:
    """A tensor, a mesh and a layout that has equal runs where it has runs."""
    shape, sizes = draw(SHAPES), draw(MESHES)
    possible = [p for p in PLACEMENTS if p.kind != "S" or shape[p.dim] % p.chunks == 0]
    return shape, sizes, tuple(draw(st.sampled_from(possible)) for _ in sizes)


def cut(run: Indices, size: int, index: int) -> Indices:
    """Part of a run, as `torch.chunk` cuts."""
    most = ceil(len(run) / size)
    return run[index * most : (index + 1) * most]


def in_words(written: Layout, shape: Shape, sizes: Sizes, rank: Sizes) -> list[Indices]:
    """Which indices of each dim a rank holds: outer axis first, what is left of each of its runs is cut."""
    left = [np.arange(length) for length in shape]
    for placement, size, index in zip(written, sizes, rank, strict=True):
        if placement.kind == "S" and size > 1:
            mine, length = left[placement.dim], shape[placement.dim] // placement.chunks
            runs = [mine[mine // length == number] for number in range(placement.chunks)]
            left[placement.dim] = np.concatenate([cut(run, size, index) for run in runs])
    return left


def held(placed: Layout, shape: Shape, sizes: Sizes, rank: Sizes) -> list[Indices]:
    """The same of an absolute layout: coarsest axis first, in whatever order they stand."""
    left = [np.arange(length) for length in shape]
    for dim in range(len(shape)):
        runs, num_runs = [left[dim]], 1
        for axis in sorted(range(len(sizes)), key=lambda axis: placed[axis].chunks):
            if placed[axis].dim == dim and sizes[axis] > 1:
                finer = [part for run in runs for part in np.split(run, placed[axis].chunks // num_runs)]
                runs = [cut(run, sizes[axis], rank[axis]) for run in finer]
                num_runs = placed[axis].chunks * sizes[axis]
        left[dim] = np.concatenate(runs)
    return left


def ranks(sizes: Sizes) -> list[Sizes]:
    return list(product(*(range(size) for size in sizes)))


def lay(whole: Array, placed: Layout, sizes: Sizes) -> Ranks:
    """Gives every rank its part; partial sums are random."""
    rng = np.random.default_rng(0)
    summed = [axis for axis, placement in enumerate(placed) if placement.kind == "P"]
    members = ranks(tuple(sizes[axis] for axis in summed))
    terms = {member: rng.normal(size=whole.shape) for member in members[1:]}
    terms[members[0]] = whole - sum(terms.values(), np.zeros_like(whole))
    return {
        rank: terms[tuple(rank[axis] for axis in summed)][np.ix_(*held(placed, whole.shape, sizes, rank))]
        for rank in ranks(sizes)
    }


def lies(parts: Ranks, whole: Array, placed: Layout, sizes: Sizes) -> bool:
    """Whether the ranks hold that tensor in that layout: copies are equal, terms add up."""
    summed = [axis for axis, placement in enumerate(placed) if placement.kind == "P"]
    copied = [axis for axis, placement in enumerate(placed) if placement.kind in "RB"]
    for rank in ranks(sizes):
        first = tuple(0 if axis in copied else i for axis, i in enumerate(rank))
        added = sum(
            parts[other]
            for other in ranks(sizes)
            if all(a == b for axis, (a, b) in enumerate(zip(rank, other, strict=True)) if axis not in summed)
        )
        expected = whole[np.ix_(*held(placed, whole.shape, sizes, rank))]
        if not (np.array_equal(parts[rank], parts[first]) and np.allclose(added, expected)):
            return False
    return True


def as_values(placed: Layout) -> Layout:
    return tuple(Placement("R") if placement.kind == "B" else placement for placement in placed)


def run(
    collective: Collective, parts: Ranks, axis: int, source: Layout, target: Layout, shape: Shape, sizes: Sizes
) -> Ranks:
    """Does one collective over the groups of one axis, each member with what the group holds and nothing else."""
    source, target = as_values(source), as_values(target)
    after: dict[Sizes, Array] = {}
    for rank in ranks(sizes):
        group = [(*rank[:axis], i, *rank[axis + 1 :]) for i in range(sizes[axis])]
        wanted = held(target, shape, sizes, rank)
        if collective == "local":
            group = [rank]
        buffer = np.full(shape, np.nan)
        for member in group:
            mine = np.ix_(*held(source, shape, sizes, member))
            if collective in ("all_reduce", "reduce_scatter"):
                buffer[mine] = np.nan_to_num(buffer[mine]) + parts[member]
            else:
                buffer[mine] = parts[member]
        if collective == "local" and target[axis].kind == "P" and source[axis].kind != "P":
            keeps = source[axis].kind == "S" or rank[axis] == 0
            buffer = np.nan_to_num(buffer) if keeps else np.zeros(shape)
        after[rank] = buffer[np.ix_(*wanted)]
        if collective == "all_gather":
            assert after[rank].size == sum(parts[member].size for member in group)
    return after


def paired(values: Ranks, gradients: Ranks, placed: Layout, sizes: Sizes) -> float:
    """Product of a tensor with its gradient: over all ranks, where both are copied over one of them."""
    copied = [axis for axis, placement in enumerate(placed) if placement.kind == "R"]
    return sum(float((values[r] * gradients[r]).sum()) for r in ranks(sizes) if not any(r[axis] for axis in copied))


@settings(max_examples=150)
@given(cases())
def test_every_move_takes_the_tensor_there_and_its_gradient_back(case: tuple[Shape, Sizes, Layout]) -> None:
    shape, sizes, written = case
    start = absolute(written, shape, sizes)
    if start is None:
        return
    rng = np.random.default_rng(1)
    value, gradient = rng.normal(size=shape), rng.normal(size=shape)
    before = lay(value, start, sizes)
    assert lies(before, value, start, sizes)
    for move in moves(start, shape, sizes, [PLACEMENTS] * len(sizes)):
        after = run(move.forward, before, move.axis, start, move.target, shape, sizes)
        assert lies(after, value, move.target, sizes), f"{move}"
        duals = [tuple(placement.gradient for placement in end) for end in (start, move.target)]
        given_back = lay(gradient, duals[1], sizes)
        taken_back = run(move.backward, given_back, move.axis, duals[1], duals[0], shape, sizes)
        assert lies(taken_back, gradient, duals[0], sizes), f"{move}"
        ends = paired(before, taken_back, start, sizes), paired(after, given_back, move.target, sizes)
        assert ends == pytest.approx([float((value * gradient).sum())] * 2)


@settings(max_examples=400)
@given(cases())
def test_absolute_layouts_put_the_same_elements_on_the_same_ranks(case: tuple[Shape, Sizes, Layout]) -> None:
    shape, sizes, written = case
    found = absolute(written, shape, sizes)
    if found is None:
        return
    assert absolute(found, shape, sizes) == found
    for rank in ranks(sizes):
        for one, other in zip(
            in_words(written, shape, sizes, rank),
            held(found, shape, sizes, rank),
            strict=True,
        ):
            assert np.array_equal(one, other)
    chunks = prod(placement.chunks for placement in written)
    if all(length % (prod(sizes) * chunks) == 0 for length in shape):
        first = held(found, shape, sizes, (0,) * len(sizes))
        assert tuple(map(len, first)) == local_shape(shape, written, sizes)


@pytest.mark.parametrize(
    ("sizes", "shape", "written", "expected"),
    [
        ((2, 4), (16,), "S(0) S(0)", "S(0) S(0/2)"),
        ((2, 2, 2), (16,), "S(0) S(0) S(0)", "S(0) S(0/2) S(0/4)"),
        ((2, 2), (12,), "S(0/3) S(0/3)", "S(0/3) S(0/6)"),
        ((2, 2, 2), (16,), "S(0/2) S(0) S(0)", "S(0/2) S(0) S(0/4)"),
        ((2, 4), (32,), "S(0) S(0/8)", "S(0) S(0/8)"),
        ((2, 4), (32,), "S(0/8) S(0)", "S(0/8) S(0)"),
        ((2, 4), (32,), "S(0) S(0/2)", "S(0) S(0/2)"),
        ((4, 2), (32,), "S(0) S(0/2)", "S(0) S(0/4)"),
        ((4, 2), (6,), "S(0) S(0/2)", None),
        ((2, 2), (5,), "S(0) S(0)", "S(0) S(0/2)"),
        ((2, 2), (5,), "R S(0/2)", None),
        ((2, 2), (12,), "S(0) S(0/3)", None),
        ((2, 4), (16,), "S(0/2) S(0)", None),
        ((1, 4), (16,), "S(0) S(0)", "S(0) S(0)"),
    ],
)
def test_axes_take_digits(sizes: Sizes, shape: Shape, written: str, expected: str | None) -> None:
    assert absolute(layout(written), shape, sizes) == (layout(expected) if expected else None)


def test_the_outer_axis_may_be_gathered_first_only_where_it_cuts_evenly() -> None:
    choices = [[Placement("R")]] * 2

    def axes(length: int) -> list[int]:
        start = absolute(layout("S(0) S(0)"), (length,), (2, 4))
        assert start is not None
        return [move.axis for move in moves(start, (length,), (2, 4), choices)]

    assert axes(16) == [0, 1]
    assert axes(6) == [0, 1]
    assert axes(5) == [1]


@pytest.mark.parametrize(
    ("source", "target", "forward", "backward"),
    [
        ("S(0)", "R", "all_gather", "local"),
        ("S(0)", "B", "all_gather", "reduce_scatter"),
        ("S(0)", "P", "local", "local"),
        ("S(0)", "S(1)", "all_to_all", "all_to_all"),
        ("S(0)", "S(0/3)", "all_to_all", "all_to_all"),
        ("R", "S(0)", "local", "all_gather"),
        ("R", "B", "local", "all_reduce"),
        ("R", "P", "local", "local"),
        ("B", "S(0)", "local", "local"),
        ("B", "R", "local", "local"),
        ("B", "P", "local", "local"),
        ("P", "S(0)", "reduce_scatter", "all_gather"),
        ("P", "R", "all_reduce", "local"),
        ("P", "B", "all_reduce", "all_reduce"),
    ],
)
def test_what_goes_forward_and_back(source: str, target: str, forward: str, backward: str) -> None:
    assert collectives(parse(source), parse(target)) == (forward, backward)
