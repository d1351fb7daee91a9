from __future__ import annotations

from math import ceil, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planner.layouts.data_parallel import padded_numel, shard_dim

SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple)


@given(SHAPES, st.integers(1, 8))
def test_every_device_holds_its_share_of_the_padded_whole(shape: tuple[int, ...], dp_shard: int) -> None:
    """torch's own chunks: the largest is what every device makes room for."""
    chunks = torch.empty(shape, device="meta").chunk(dp_shard, dim=shard_dim(shape, dp_shard))
    assert padded_numel(shape, dp_shard) == dp_shard * max(chunk.numel() for chunk in chunks)


@given(SHAPES, st.integers(1, 8))
def test_nothing_is_padded_where_a_dim_divides(shape: tuple[int, ...], dp_shard: int) -> None:
    divides = any(size % dp_shard == 0 for size in shape)
    assert (padded_numel(shape, dp_shard) == prod(shape)) >= divides
    if not divides:
        assert padded_numel(shape, dp_shard) == ceil(shape[0] / dp_shard) * dp_shard * prod(shape[1:])


@pytest.mark.parametrize(("dp_shard", "dim"), [(4, 0), (8, 0), (16, 1), (128, 1)])
def test_stacked_experts_are_sharded_within_once_there_are_too_few(dp_shard: int, dim: int) -> None:
    assert shard_dim((8, 14336, 4096), dp_shard) == dim
    assert padded_numel((8, 14336, 4096), dp_shard) == 8 * 14336 * 4096
