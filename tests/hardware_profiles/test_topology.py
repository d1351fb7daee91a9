from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.cluster import Cluster, Group
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import boundary, group
from tests.hardware_profiles.pictures import TOY

H100 = load_cluster("h100-sxm:8x8")
MI250X = load_cluster("mi250x:4x8")
ASCEND = load_cluster("ascend-910b:2x8")
DGX = load_cluster("dgx-h100:128x8")


def fans(cluster: Cluster, size: int, stride: int) -> list[int]:
    return [level.fan for level in group(cluster, size=size, stride=stride).levels]


def units(cluster: Cluster) -> list[int]:
    """Devices of a node and of every level above."""
    return [cluster.devices_per_node, *(level.num_devices for level in cluster.network)]


def groups_of_axis(total: int, size: int, stride: int) -> list[list[int]]:
    return [
        [start + i * stride for i in range(size)]
        for block in range(0, total - size * stride + 1, size * stride)
        for start in range(block, block + stride)
    ]


@pytest.mark.parametrize(
    ("cluster", "size", "stride", "expected"),
    [
        (H100, 8, 1, [8]),
        (H100, 2, 1, [2]),
        (H100, 16, 4, [2, 8]),
        (H100, 8, 8, [8]),
        (H100, 64, 1, [8, 8]),
        (H100, 1, 8, []),
        (H100, 4, 2, [4]),
        (H100, 8, 2, [4, 2]),
        (MI250X, 32, 1, [8, 4]),
        (MI250X, 4, 8, [4]),
        # 32 nodes to a leaf: four leaves.
        (DGX, 1024, 1, [8, 32, 4]),
        (DGX, 64, 8, [32, 2]),
        (DGX, 4, 256, [4]),
        # 3, 3 and 2 members of each group in the nodes: two per node is what all have.
        (load_cluster("h100-sxm:3x8"), 8, 3, [2, 4]),
        (load_cluster("h100-sxm:3x8"), 3, 1, [1, 3]),
    ],
)
def test_fans(cluster: Cluster, size: int, stride: int, expected: list[int]) -> None:
    assert fans(cluster, size, stride) == [fan for fan in expected if fan > 1]


@given(st.data())
def test_against_the_ranks_themselves_where_the_axis_divides(data: st.DataObject) -> None:
    cluster = data.draw(
        st.sampled_from(
            [H100, MI250X, load_cluster("mi250x:6x6"), load_cluster("h100-sxm:5x6"), load_cluster("dgx-h100:48x8")]
        )
    )
    total = cluster.num_devices
    stride = data.draw(st.sampled_from([s for s in range(1, total + 1) if total % s == 0]))
    size = data.draw(st.sampled_from([n for n in range(1, total // stride + 1) if (total // stride) % n == 0]))
    got = group(cluster, size=size, stride=stride)
    assert prod(level.fan for level in got.levels) == size
    assert all(level.fan > 1 for level in got.levels)
    counts = []
    for unit in units(cluster):
        per_group = [
            [sum(rank // unit == u for rank in ranks) for u in {rank // unit for rank in ranks}]
            for ranks in groups_of_axis(total, size, stride)
        ]
        counts.append({count for units_ in per_group for count in units_})
    if all(len(count) == 1 for count in counts):
        members = [count.pop() for count in counts]
        expected = [outer // inner for inner, outer in zip([1, *members], members, strict=False)]
        assert [level.fan for level in got.levels] == [fan for fan in expected if fan > 1]


@given(size=st.integers(1, 24), stride=st.integers(1, 24))
def test_uneven_axes_never_claim_more_members_than_every_node_has(size: int, stride: int) -> None:
    cluster = load_cluster("h100-sxm:3x8")
    if size * stride > cluster.num_devices:
        return
    got = group(cluster, size=size, stride=stride)
    assert prod(level.fan for level in got.levels) == size
    inside = prod(level.fan for level in got.levels if level.name == "node")
    for ranks in groups_of_axis(24, size, stride):
        assert inside <= min(sum(rank // 8 == unit for rank in ranks) for unit in {rank // 8 for rank in ranks})


def test_an_axis_that_does_not_fit_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="axis 16 x stride 8 in 64 devices"):
        group(H100, size=16, stride=8)


@given(st.sampled_from([H100, MI250X, ASCEND]), st.integers(1, 8), st.data())
def test_boundary_against_the_pairs_themselves(cluster: Cluster, stride: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, cluster.num_devices // stride - 2))
    pairs = [(rank, rank + stride) for rank in range(index * stride, (index + 1) * stride)]
    crossed = next(i for i, unit in enumerate(units(cluster)) if all(a // unit == b // unit for a, b in pairs))
    link = boundary(cluster, stride=stride, index=index)
    assert isinstance(link, Group)
    assert (link.size, [level.fan for level in link.levels]) == (2, [2])
    assert link.levels[0].name == ["node", *(level.name for level in cluster.network)][crossed]


@given(st.sampled_from([H100, MI250X, ASCEND]), st.integers(1, 8))
def test_without_index_it_is_the_slowest(cluster: Cluster, stride: int) -> None:
    every = [boundary(cluster, stride=stride, index=i) for i in range(cluster.num_devices // stride - 1)]
    assert boundary(cluster, stride=stride).levels[0].bytes_per_s == min(link.levels[0].bytes_per_s for link in every)


def test_a_boundary_has_the_rate_of_sends() -> None:
    toy = load_cluster(f"{TOY}:4x4")
    assert boundary(toy, stride=2, index=0).levels[0].bytes_per_s == pytest.approx(100e9 * 0.85)
    assert boundary(toy, stride=4, index=0).levels[0].bytes_per_s == pytest.approx(10e9 * 0.95)
    assert boundary(toy, stride=4, index=0).levels[0].latency_s == pytest.approx(3e-6)


def test_ways_out_of_a_node_grow_apart_on_frontier() -> None:
    """A card, two cards, the node, two nodes."""
    frontier = load_cluster("frontier:8x8")
    groups = [group(frontier, size=size, stride=1) for size in (2, 4, 8, 16)]
    rates = [each.levels[-1].bytes_per_s for each in groups]
    assert all(abs(a / b - 1) > 0.2 for i, a in enumerate(rates) for b in rates[:i])
    assert rates[0] == max(rates)
    assert rates[3] == min(rates)
    assert len({each.levels[-1].limit for each in groups}) == 4


def test_the_slowest_kind_of_machine_counts_in_a_mixed_cluster() -> None:
    mixed = load_cluster("two-islands")
    first, second = mixed.machines
    alone = [load_cluster(f"two-islands@{machines.name}") for machines in mixed.machines]
    rates = [group(cluster, size=2, stride=8).levels[0].bytes_per_s for cluster in alone]
    assert group(mixed, size=2, stride=8).levels[0].bytes_per_s == pytest.approx(min(rates))
    assert mixed.num_devices == first.num_devices + second.num_devices
    wan = group(mixed, size=2, stride=mixed.num_devices // 2).levels[-1]
    assert wan.name == mixed.network[-1].name
    assert wan.bytes_per_s < min(rates)
