"""Which part of a tensor a rank holds.

**Zig-zag.** Under a causal mask the last rows of a sequence attend to all others and the first to none, so ranks that
share a sequence hold one part from each end: rank ``r`` of ``n`` the chunks ``r`` and ``2 n - 1 - r`` of ``2 n``. Here
a *whole* sequence is already in that order, chunks ``0, 2n-1, 1, 2n-2, ...`` one after the other, and layouts cut it
as they cut anything. Only what counts along a sequence has to know (`reordered`): what comes from outside, masks by
position, slices, running sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from planner.graph import Dim
from planner.layouts.cuts import Indices, chunked, cuts, held_indices, held_shape, placed_as
from planner.layouts.placements import Layout, Shape


@dataclass(frozen=True)
class ExpertGroup:
    """Ranks that divide the experts of a layer among them (``ep``), each with tokens of its own."""

    group: ProcessGroup | None
    """``None``: one rank."""
    size: int
    rank: int
    """Of this rank in the group."""
    holders: tuple[tuple[int, ...], ...] = ()
    """Per expert the ranks that hold it, ascending, each rank as many experts as the others; several hold replicas.
    Empty: each rank its share, in order."""

    def slots(self, num_experts: int) -> tuple[tuple[int, ...], ...]:
        """Per rank, the experts that it holds, ascending: those of its parameters' rows."""
        if not self.holders:
            share = num_experts // self.size
            return tuple(tuple(range(r * share, (r + 1) * share)) for r in range(self.size))
        return tuple(tuple(e for e, ranks in enumerate(self.holders) if r in ranks) for r in range(self.size))


@dataclass(frozen=True)
class AxisGroups:
    """The axes that values are laid over, outer to inner, and where this rank stands among them."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    coordinates: tuple[int, ...]
    groups: tuple[ProcessGroup | None, ...]
    """Per axis, the ranks that differ in it alone; ``None`` where that is one."""
    zigzag: int = 1
    """Ranks that share a sequence in zig-zag order; 1: sequences are in their own order."""
    experts: ExpertGroup | None = None
    """Where it is no axis of these that divides a layer's experts."""

    @staticmethod
    def of(mesh: DeviceMesh, *, zigzag: int = 1) -> AxisGroups:
        names, sizes = tuple(mesh.mesh_dim_names or ()), tuple(mesh.shape)
        groups = tuple(mesh.get_group(i) if size > 1 else None for i, size in enumerate(sizes))
        return AxisGroups(names, sizes, tuple(mesh.get_coordinate() or ()), groups, zigzag)

    def group_name(self, axis: int) -> str:
        """As functional collectives want it."""
        group = self.groups[axis]
        assert group is not None, f"{self.names[axis]} has one rank, which has nobody to communicate with"
        return str(group.group_name)

    def moved_to(self, axis: int, index: int) -> AxisGroups:
        """As another rank of an axis's group sees it."""
        return replace(self, coordinates=(*self.coordinates[:axis], index, *self.coordinates[axis + 1 :]))


def part_shape(layout: Layout, shape: Shape, mesh: AxisGroups) -> Shape:
    """Shape of what this rank holds (not padded); ``layout`` as it is written anywhere."""
    return held_shape(layout, shape, mesh.sizes, mesh.coordinates)


def positions(layout: Layout, shape: Shape, dim: int, mesh: AxisGroups) -> Indices:
    """Which indices of a dim of the whole this rank holds, in its order."""
    return held_indices(layout, shape, dim, mesh.sizes, mesh.coordinates)


def located(layout: Layout, shape: Shape, dim: int, mesh: AxisGroups) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Of indices along a dim of the whole and a truth value: their places in this rank's part, and whether that is true
    and they are in it (else the place says nothing)."""
    placed = placed_as(layout, shape, mesh.sizes)
    found = [(cut, mesh.coordinates[a]) for a, cut in cuts(placed, shape, mesh.sizes, mesh.coordinates).items()]

    def locate(index: Any, inside: Any) -> tuple[Any, Any]:
        size = shape[dim]
        for cut, own in found:
            if cut.dim == dim:
                run = size // cut.above
                parts = chunked(run, len(cut.parts))
                start, place = sum(parts[:own]), index % run
                inside = inside & (place >= start) & (place < start + parts[own])
                index = index // run * parts[own] + place - start
                size = cut.above * parts[own]
        return index, inside

    return locate


def lay(whole: Tensor, layout: Layout, mesh: AxisGroups) -> Tensor:
    """This rank's part of what all ranks have: its slice, or (of ``P``) all of it on the first rank, zeros on others.

    Not differentiable: for what comes from outside without a gradient. A sequence must have been `reordered`.
    """
    placed = placed_as(layout, tuple(whole.shape), mesh.sizes)
    part = whole
    for axis, cut in cuts(placed, tuple(whole.shape), mesh.sizes, mesh.coordinates).items():
        length = part.shape[cut.dim] // cut.above
        parts = chunked(length, mesh.sizes[axis])
        runs = part.unflatten(cut.dim, (cut.above, length))
        own = mesh.coordinates[axis]
        part = runs.narrow(cut.dim + 1, sum(parts[:own]), parts[own]).flatten(cut.dim, cut.dim + 1)
    if any(p.kind == "P" and rank for p, rank in zip(placed, mesh.coordinates, strict=True)):
        return torch.zeros_like(part)
    return part.contiguous()


Sequences = tuple[int, ...]
"""Per dim of a value, how many sequences lie in it one behind the other; 0 where none does."""


def sequences_of(dims: Sequence[Dim], batch: int) -> Sequences:
    """Dims that grow with the sequence: one sequence, or one of every sample."""
    return tuple(0 if not dim.slope else batch if dim.per_batch else 1 for dim in dims)


def reordered(tensor: Tensor, sequences: Sequences, zigzag: int, *, back: bool = False) -> Tensor:
    """Whole sequences from their own order into zig-zag order, or ``back``.

    One that ``2 * zigzag`` does not divide stays as it is.
    """
    for dim, count in enumerate(sequences):
        if zigzag > 1 and count and tensor.shape[dim] % (2 * zigzag * count) == 0 and tensor.shape[dim]:
            order = _inverse(zigzag_order(zigzag)) if back else zigzag_order(zigzag)
            chunks = tensor.unflatten(dim, (count, 2 * zigzag, -1))
            index = torch.tensor(order, device=tensor.device)
            tensor = chunks.index_select(dim + 1, index).flatten(dim, dim + 2)
    return tensor


def zigzag_order(ranks: int) -> tuple[int, ...]:
    """Which chunk of a sequence stands where: ``0, 2n-1, 1, 2n-2, ...``."""
    return tuple(chunk for r in range(ranks) for chunk in (r, 2 * ranks - 1 - r))


def in_own_order(indices: Indices, length: int, zigzag: int) -> Indices:
    """Places in a sequence's own order of places in zig-zag order (`reordered`)."""
    if zigzag == 1 or length % (2 * zigzag):
        return indices
    chunk = length // (2 * zigzag)
    return np.array(zigzag_order(zigzag))[indices // chunk] * chunk + indices % chunk


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
