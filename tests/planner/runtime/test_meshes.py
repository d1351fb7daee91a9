"""Who talks to whom, against the numbering that the axes are defined by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from planner.runtime.meshes import Meshes, make_meshes
from tests.planner.runtime.stages import candidate

SIZES = {"pp": 2, "dp_replicate": 2, "dp_shard": 3, "cp": 2, "tp": 4}


@pytest.fixture
def world() -> Iterator[Callable[..., Meshes]]:
    def meshes(rank: int, world_size: int, **changes: Any) -> Meshes:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        return make_meshes(candidate(**changes), rank=rank, device_type="cpu")

    yield meshes
    dist.destroy_process_group()


def number(place: dict[str, int]) -> int:
    rank = 0
    for axis, size in SIZES.items():
        rank = rank * size + place[axis]
    return rank


def members(meshes: Meshes, axis: str) -> list[int]:
    return dist.get_process_group_ranks(meshes.groups[axis])


@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (1, 0, 2, 1, 3), (1, 1, 1, 0, 2)])
def test_groups_differ_in_one_axis(world: Callable[..., Meshes], place: tuple[int, ...]) -> None:
    at = dict(zip(SIZES, place, strict=True))
    meshes = world(number(at), 96, **SIZES, zero_stage=3, ep=6)
    for axis, size in SIZES.items():
        assert members(meshes, axis) == [number({**at, axis: i}) for i in range(size)]
        assert meshes.coordinates[axis] == at[axis]
    assert members(meshes, "fsdp") == [number({**at, "dp_shard": s, "cp": c}) for s in range(3) for c in range(2)]
    # 24 neighbours of dp_shard * cp * tp: 4 with the same experts, 6 next to each other with different ones.
    first = number({**at, "dp_shard": 0, "cp": 0, "tp": 0})
    inside, outside = (number(at) - first) % 6, (number(at) - first) // 6
    assert members(meshes, "ep") == [first + outside * 6 + i for i in range(6)]
    assert members(meshes, "expert_shard") == [first + i * 6 + inside for i in range(4)]
    assert meshes.fsdp.mesh_dim_names == ("dp_replicate", "fsdp")
    assert meshes.expert_fsdp.shape == (2, 4)
    assert meshes.data_coordinate == at["dp_replicate"] * 3 + at["dp_shard"]


def test_rings_lie_outside_of_those_that_exchange_heads(world: Callable[..., Meshes]) -> None:
    c = candidate(cp=4, tp=2, context="ulysses_ring", ulysses=2, zero_stage=1)
    meshes = world(5, 8, cp=4, tp=2, context="ulysses_ring", ulysses=2, zero_stage=1)
    assert members(meshes, "cp_ring") == [1, 5]
    assert members(meshes, "cp_ulysses") == [5, 7]
    axes = meshes.axis_groups(c)
    assert (axes.names, axes.sizes, axes.coordinates) == (("cp_ring", "cp_ulysses", "tp"), (2, 2, 2), (1, 0, 1))
    assert axes.zigzag == 2


def test_a_large_world_takes_no_time(world: Callable[..., Meshes]) -> None:
    began = time.process_time()
    meshes = world(5000, 16384, pp=16, dp_replicate=2, dp_shard=32, cp=2, tp=8, zero_stage=3)
    assert time.process_time() - began < 2
    assert meshes.world_size == 16384 and meshes.spmd.size() == 1024
