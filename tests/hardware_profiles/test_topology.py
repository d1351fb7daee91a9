from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.cluster import Cluster, Group
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import boundary, group

H100 = load_cluster("h100-sxm:8x8")
MI250X = load_cluster("mi250x:4x8")
ASCEND = load_cluster("ascend-910b:2x8")


def fans(cluster: Cluster, size: int, stride: int) -> list[int]:
    return [level.fan for level in group(cluster, size=size, stride=stride).levels]


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
        (MI250X, 8, 1, [2, 4]),
        (MI250X, 4, 2, [4]),
        (MI250X, 32, 1, [2, 4, 4]),
        (MI250X, 4, 8, [4]),
        # 3, 3 and 2 members of each group in the nodes: two per node is what all have.
        (load_cluster("h100-sxm:3x8"), 8, 3, [2, 4]),
        (load_cluster("h100-sxm:3x8"), 3, 1, [1, 3]),
    ],
)
def test_fans(cluster: Cluster, size: int, stride: int, expected: list[int]) -> None:
    assert fans(cluster, size, stride) == [fan for fan in expected if fan > 1]


@given(st.data())
def test_against_the_ranks_themselves_where_the_axis_divides(data: st.DataObject) -> None:
    cluster = data.draw(st.sampled_from([H100, MI250X, load_cluster("mi250x:6x6"), load_cluster("h100-sxm:5x6")]))
    total = cluster.num_devices
    stride = data.draw(st.sampled_from([s for s in range(1, total + 1) if total % s == 0]))
    size = data.draw(st.sampled_from([n for n in range(1, total // stride + 1) if (total // stride) % n == 0]))
    got = group(cluster, size=size, stride=stride)
    assert prod(level.fan for level in got.levels) == size
    assert all(level.fan > 1 for level in got.levels)
    counts = []
    for level in cluster.levels:
        per_group = [
            [
                sum(rank // level.num_devices == unit for rank in ranks)
                for unit in {rank // level.num_devices for rank in ranks}
            ]
            for ranks in groups_of_axis(total, size, stride)
        ]
        counts.append({count for units in per_group for count in units})
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
    node = H100.levels[0].bytes_per_s * H100.levels[0].sustained_fraction
    inside = prod(level.fan for level in got.levels if level.bytes_per_s == node)
    for ranks in groups_of_axis(24, size, stride):
        assert inside <= min(sum(rank // 8 == unit for rank in ranks) for unit in {rank // 8 for rank in ranks})


def test_figures_are_sustained_and_per_member() -> None:
    node, network = group(H100, size=64, stride=1).levels
    assert node.bytes_per_s == pytest.approx(450e9 * 0.81)
    assert node.switch_reduce_bytes_per_s == pytest.approx(450e9 * 0.69)
    assert network.bytes_per_s == pytest.approx(50e9 * 0.926)
    assert network.switch_reduce_bytes_per_s == 0
    assert group(H100, size=8, stride=8).levels[0].bytes_per_s == network.bytes_per_s


def test_a_full_mesh_gives_a_small_group_few_links() -> None:
    whole, pair = (group(ASCEND, size=size, stride=1).levels[0].bytes_per_s for size in (8, 2))
    assert whole == pytest.approx(196e9 * 0.66)
    assert pair == pytest.approx(28e9 * 0.66)


def test_an_axis_that_does_not_fit_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="axis 16 x stride 8 in 64 devices"):
        group(H100, size=16, stride=8)


@pytest.mark.parametrize(
    ("stride", "index", "gigabytes_per_s"),
    [
        (4, 0, 450 * 0.81),
        (4, 1, 50 * 0.926),
        (8, 0, 50 * 0.926),
        (4, None, 50 * 0.926),
        (16, 2, 50 * 0.926),
        (3, 0, 450 * 0.81),
        (3, 1, 50 * 0.926),
    ],
)
def test_boundary_takes_the_outermost_level_that_a_pair_crosses(
    stride: int, index: int | None, gigabytes_per_s: float
) -> None:
    link = boundary(H100, stride=stride, index=index)
    assert isinstance(link, Group)
    assert (link.size, [level.fan for level in link.levels]) == (2, [2])
    assert link.levels[0].bytes_per_s == pytest.approx(gigabytes_per_s * 1e9)


@given(st.sampled_from([H100, MI250X, ASCEND]), st.integers(1, 8), st.data())
def test_boundary_against_the_pairs_themselves(cluster: Cluster, stride: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, cluster.num_devices // stride - 2))
    pairs = [(rank, rank + stride) for rank in range(index * stride, (index + 1) * stride)]
    level = next(
        level for level in cluster.levels if all(a // level.num_devices == b // level.num_devices for a, b in pairs)
    )
    assert boundary(cluster, stride=stride, index=index).levels[0].latency_s == level.latency_s


@given(st.sampled_from([H100, MI250X, ASCEND]), st.integers(1, 8))
def test_without_index_it_is_the_slowest(cluster: Cluster, stride: int) -> None:
    every = [boundary(cluster, stride=stride, index=i) for i in range(cluster.num_devices // stride - 1)]
    assert boundary(cluster, stride=stride).levels[0].bytes_per_s == min(link.levels[0].bytes_per_s for link in every)
