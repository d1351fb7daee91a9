"""Shapes of a block's values on one device, by where in the block they are read."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from planner.graph import Block
from planner.layouts.tensor_parallel import TensorParallel

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LocalShapes:
    """Shapes of a block's values on one device."""

    inside: tuple[Shape, ...]
    """Within sharded regions: what is not sharded over heads or widths is whole."""
    outside: tuple[Shape, ...]
    """Elsewhere: sharded along the sequence where sequence parallelism has it."""
    stored: tuple[Shape, ...]
    """As kept in memory: gathered entries whole, the rest as ``outside``."""
    routed: tuple[Shape, ...]
    """Where tokens are dispatched to experts: no width is sharded, every ``tp`` rank has its part of the tokens."""


def local_shapes(
    block: Block, layout: TensorParallel, *, tp: int, sequence_parallel: bool, batch: int, seq_len: int
) -> LocalShapes:
    """Shapes on one of ``tp`` devices; a size that ``tp`` does not divide is rounded up (the padded shard).

    Args:
        seq_len: tokens of a sample on one device of ``cp``.
    """
    whole = tuple(value.shape(batch, seq_len) for value in block.values)
    if tp == 1:
        return LocalShapes(whole, whole, whole, whole)

    def cut(shape: Shape, dim: int | None) -> Shape:
        return shape if dim is None else (*shape[:dim], ceil(shape[dim] / tp), *shape[dim + 1 :])

    inside = tuple(cut(shape, dim) for shape, dim in zip(whole, layout.shard_dim, strict=True))
    routed = tuple(value.shape(batch, ceil(seq_len / tp)) for value in block.values)
    if not sequence_parallel:
        return LocalShapes(inside, inside, inside, routed)
    outside = tuple(
        cut(shape, dim if sharded is None else None)
        for shape, dim, sharded in zip(inside, layout.sequence_dim, layout.shard_dim, strict=True)
    )
    gathered = {block.values[v].storage for v in layout.entries}
    stored = tuple(
        a if value.storage in gathered else b for value, a, b in zip(block.values, inside, outside, strict=True)
    )
    return LocalShapes(inside, outside, stored, routed)
