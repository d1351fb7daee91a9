"""Which dim of a parameter ``dp_shard`` shards.

``fully_shard`` shards dim 0 unless told otherwise (its ``shard_placement_fn``), padding every shard to the same size.
Sharding 8 stacked experts along dim 0 over 128 devices would leave 8 of them with one whole expert each. So the first
dim that ``dp_shard`` divides is taken; only where none is divisible, dim 0 is padded.
"""

from __future__ import annotations

from math import ceil, prod

Shape = tuple[int, ...]


def shard_dim(shape: Shape, dp_shard: int) -> int:
    """Dim of a parameter (``shape`` on one device of ``tp``) that is sharded over ``dp_shard``."""
    return next((dim for dim, size in enumerate(shape) if size % dp_shard == 0), 0)


def padded_numel(shape: Shape, dp_shard: int) -> int:
    """Elements of the whole parameter with padding: ``dp_shard`` times what each device holds."""
    if not shape:
        return dp_shard
    size = shape[shard_dim(shape, dp_shard)]
    return prod(shape) // size * ceil(size / dp_shard) * dp_shard if size else 0
