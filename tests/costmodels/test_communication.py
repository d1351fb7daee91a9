from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.communication import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    all_to_all_uneven_s,
    barrier_s,
    broadcast_s,
    reduce_scatter_s,
    send_recv_s,
)
from costmodels.units import MIB
from hardware_profiles.cluster import Group
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import boundary, group
from tests.hardware_profiles.pictures import EVERYTHING, level, library, members

Collective = Callable[[Group, float], float]
COLLECTIVES: list[Collective] = [all_reduce_s, all_gather_s, reduce_scatter_s, all_to_all_s, broadcast_s]

GROUPS = st.builds(
    lambda name, size, stride: group(load_cluster(name), size=size, stride=stride),
    st.sampled_from(["h100-sxm:8x8", "dgx-h100:64x8", "frontier:8x8", "ascend-910b:8x8", "mi300x:8x8"]),
    st.sampled_from([2, 4, 8, 16]),
    st.sampled_from([1, 2, 4]),
)
SIZES = st.integers(1, 2**34)

named = st.sampled_from([("node", "leaf", "spine"), ("node", "leaf"), ("node",), ("leaf", "spine"), ("leaf",)])
levels_of = named.flatmap(
    lambda names: st.tuples(
        *(
            st.builds(
                level,
                st.sampled_from([2, 4, 8]),
                st.floats(1.0, 500.0),
                latency_us=st.floats(0.1, 20.0),
                name=st.just(name),
            )
            for name in names
        )
    )
)
some_groups = st.builds(
    lambda levels, algorithms, protocols: members(
        *levels, by=library("ring", *algorithms, protocols=protocols, launch_us=3.0, copy_gb_per_s=700.0)
    ),
    levels_of,
    st.sets(st.sampled_from(EVERYTHING)),
    st.sampled_from([("simple",), ("ll", "simple"), ("hockney",)]),
)


def flat(size: int, *, gigabytes_per_s: float = 100.0, latency_us: float = 0.0) -> Group:
    return members(level(size, gigabytes_per_s, latency_us=latency_us))


def plain(inner: int, outer: int, *algorithms: str, protocols: tuple[str, ...] = ("hockney",)) -> Group:
    """Two levels without latency."""
    return members(
        level(inner, 100.0), level(outer, 10.0, name="network"), by=library(*algorithms, protocols=protocols)
    )


@pytest.mark.parametrize("collective", [*COLLECTIVES, send_recv_s])
def test_alone_or_nothing_to_send_is_free(collective: Collective) -> None:
    assert collective(Group(size=1, levels=(), library=library(launch_us=5)), 1e9) == 0
    assert collective(flat(2, latency_us=5), 0) == 0


def test_a_barrier_alone_is_free() -> None:
    assert barrier_s(Group(size=1, levels=(), library=library(launch_us=5))) == 0
    assert barrier_s(members(level(8, latency_us=1), by=library(launch_us=5))) == pytest.approx(5e-6 + 14e-6)
    across = level(8, latency_us=1, name="network")
    assert barrier_s(members(across, by=library("tree", launch_us=5))) == pytest.approx(5e-6 + 6e-6)


@pytest.mark.parametrize("collective", [*COLLECTIVES, send_recv_s])
@given(group=st.one_of(GROUPS, some_groups), num_bytes=SIZES, more=SIZES)
def test_more_bytes_take_longer(collective: Collective, group: Group, num_bytes: int, more: int) -> None:
    assert 0 < collective(group, num_bytes) < collective(group, num_bytes + more)


@given(group=st.one_of(GROUPS, some_groups), num_bytes=SIZES)
def test_an_all_reduce_is_at_most_a_reduce_scatter_and_an_all_gather(group: Group, num_bytes: int) -> None:
    both = reduce_scatter_s(group, num_bytes) + all_gather_s(group, num_bytes)
    assert all_reduce_s(group, num_bytes) <= both * (1 + 1e-9)


@given(levels=levels_of, num_bytes=SIZES)
def test_a_ring_all_reduce_is_a_reduce_scatter_and_an_all_gather(levels: tuple[object, ...], num_bytes: int) -> None:
    group = members(*levels, by=library("ring", protocols=("hockney",)))  # type: ignore[arg-type]
    both = reduce_scatter_s(group, num_bytes) + all_gather_s(group, num_bytes)
    assert all_reduce_s(group, num_bytes) == pytest.approx(both, rel=1e-9)


@given(group=some_groups, num_bytes=SIZES)
def test_levels_never_cost_more_than_everybody_on_the_worst_of_them(group: Group, num_bytes: int) -> None:
    """The worst level alone joins all members: its bandwidth and latency, no way that the group does not have."""
    worst = level(
        group.size,
        min(each.bytes_per_s for each in group.levels) / 1e9,
        latency_us=max(each.latency_s for each in group.levels) * 1e6,
        name="node",
    )
    known = group.library.algorithms - {"tree", "sharp", "halving-doubling"}
    library_ = replace(group.library, algorithms=known)
    alone = Group(size=group.size, levels=(worst,), library=library_)
    for collective in COLLECTIVES:
        if collective is not all_to_all_s:
            assert collective(replace(group, library=library_), num_bytes) <= collective(alone, num_bytes) * (1 + 1e-9)


@given(group=st.one_of(GROUPS, some_groups), num_bytes=SIZES)
def test_never_faster_than_the_links(group: Group, num_bytes: int) -> None:
    """Every member must receive what it lacks, and all its links together bring no more than their sum."""
    n, inner, rate = group.size, 1, 0.0
    for each in group.levels:
        rate += max(each.bytes_per_s, each.reduce_bytes_per_s) * inner
        inner *= each.fan
    for collective, received in ((all_gather_s, (n - 1) / n), (reduce_scatter_s, (n - 1) / n), (broadcast_s, 1.0)):
        assert collective(group, num_bytes) >= received * num_bytes / rate
    assert all_reduce_s(group, num_bytes) >= num_bytes / rate


@pytest.mark.parametrize(
    ("collective", "bytes_over_the_busiest_link"),
    [(all_reduce_s, 1.75), (all_gather_s, 0.875), (reduce_scatter_s, 0.875), (all_to_all_s, 0.875), (broadcast_s, 1.0)],
)
def test_the_factors_of_nccl_tests(collective: Collective, bytes_over_the_busiest_link: float) -> None:
    assert collective(flat(8), 1e9) == pytest.approx(bytes_over_the_busiest_link * 1e9 / 100e9)


def test_a_member_copies_its_own_share() -> None:
    group = members(level(2, 100.0), by=library(copy_gb_per_s=200.0))
    assert all_gather_s(group, 1e9) == pytest.approx(0.5e9 / 100e9 + 0.5e9 / 200e9)
    assert all_reduce_s(group, 1e9) == pytest.approx(1e9 / 100e9 + 0.5e9 / 200e9)
    assert broadcast_s(group, 1e9) == pytest.approx(1e9 / 100e9)


def test_small_messages_pay_launch_and_hops() -> None:
    group = members(level(8, 100.0, latency_us=2), by=library(protocols=("ll", "simple"), launch_us=5))
    assert all_gather_s(group, 1e-6) == pytest.approx(5e-6 + 7 * 2e-6, rel=1e-3)
    assert all_reduce_s(group, 1e-6) == pytest.approx(5e-6 + 14 * 2e-6, rel=1e-3)
    assert broadcast_s(group, 1e-6) == pytest.approx(5e-6 + log2(8) * 2e-6, rel=1e-3)


def test_the_protocol_changes_with_the_size() -> None:
    def seconds(num_bytes: float, *protocols: str) -> float:
        return all_gather_s(members(level(8, 100.0, latency_us=2), by=library(protocols=protocols)), num_bytes)

    small, large = 1024, 1024 * MIB
    assert seconds(small, "ll", "simple") == seconds(small, "ll") < seconds(small, "simple")
    assert seconds(large, "ll", "simple") == seconds(large, "simple") < seconds(large, "ll")


def test_the_algorithm_changes_with_the_size() -> None:
    def seconds(num_bytes: float, *algorithms: str) -> float:
        ring = level(64, 10.0, latency_us=5, name="network")
        return all_reduce_s(members(ring, by=library(*algorithms, protocols=("hockney",))), num_bytes)

    assert seconds(1024, "ring", "tree") < seconds(1024, "ring") / 5
    # Two trees carry what a ring carries.
    assert seconds(1024 * MIB, "ring", "tree") == pytest.approx(seconds(1024 * MIB, "ring"), rel=0.01)


def test_the_ramp_lies_between_latency_and_wire_time() -> None:
    wire_s, hops_s = 1.75 * 16 * MIB / 100e9, (1 + 14) * 2e-6
    got = all_reduce_s(flat(8, latency_us=2), 16 * MIB)
    assert got == pytest.approx((hops_s**0.5 + wire_s**0.5) ** 2)
    assert hops_s + wire_s < got < 2 * (hops_s + wire_s)


def test_members_of_a_node_share_the_data_on_the_network() -> None:
    num_bytes = 1e9
    assert all_gather_s(plain(8, 4), num_bytes) == pytest.approx(31 / 32 * num_bytes / 8 / 10e9)
    assert broadcast_s(plain(8, 4), num_bytes) == pytest.approx(num_bytes / 8 / 10e9)
    assert all_to_all_s(plain(8, 4), num_bytes) == pytest.approx(24 / 32 * num_bytes / 10e9)
    # A hierarchy finishes one level before the next begins; the ring has both busy at once.
    assert all_reduce_s(plain(8, 4), num_bytes) == pytest.approx(2 * 31 / 32 * num_bytes / 8 / 10e9)
    levels = 2 * 7 / 8 * num_bytes / 100e9 + 2 * 3 / 4 * num_bytes / 8 / 10e9
    assert all_reduce_s(plain(8, 4, "ring", "hierarchical"), num_bytes) == pytest.approx(
        min(levels, 2 * 31 / 32 * num_bytes / 8 / 10e9)
    )


@given(group=some_groups, num_bytes=SIZES)
def test_an_even_exchange_is_the_even_case_of_the_uneven(group: Group, num_bytes: int) -> None:
    if group.size <= 32:
        rows = [[num_bytes / group.size] * group.size] * group.size
        assert all_to_all_uneven_s(group, rows) == pytest.approx(all_to_all_s(group, num_bytes), rel=1e-9)


def test_an_uneven_exchange_waits_for_the_busiest_member() -> None:
    group = plain(2, 2)
    rows = [[0.0, 0, 0, 0], [0, 0, 0, 0], [3e9, 0, 0, 0], [2e9, 0, 0, 0]]
    assert all_to_all_uneven_s(group, rows) == pytest.approx(5e9 / 10e9)
    assert all_to_all_uneven_s(group, [[0.0, 4e9, 0, 0], *[[0.0] * 4] * 3]) == pytest.approx(4e9 / 100e9)
    assert all_to_all_uneven_s(group, [[0.0] * 4] * 4) == 0
    with pytest.raises(ValueError, match="num_bytes must be 4 rows of 4, one per member of the group"):
        all_to_all_uneven_s(group, [[1.0] * 3] * 4)


def test_libraries_that_the_members_processors_drive() -> None:
    """gloo, 10 GB/s, copies at 5 GB/s; hops of 3 us wait for the slowest of four, 25 / 12 as long."""
    by = replace(library("ring", protocols=("hockney",), launch_us=50, copy_gb_per_s=5.0), name="gloo")
    group = members(level(4, 10.0, latency_us=3.0), by=by)
    launch, waited, passed, copied = 50e-6, 3e-6 * 25 / 12, 3 / 4 * 1e9 / 10e9, 1e9 / 5e9
    assert all_reduce_s(group, 1e9) == pytest.approx(launch + 6 * waited + 2 * passed)
    assert reduce_scatter_s(group, 1e9) == pytest.approx(launch + 6 * waited + 2 * passed + copied)
    assert all_gather_s(group, 1e9) == pytest.approx(launch + 3 * waited + passed + copied)
    assert broadcast_s(group, 1e9) == pytest.approx(launch + 2 * 3e-6 + passed)
    assert all_to_all_s(group, 1e9) == pytest.approx(launch + 3 * 3e-6 + passed)


def test_a_transfer_between_two_is_latency_and_wire_time() -> None:
    assert send_recv_s(flat(2, gigabytes_per_s=50, latency_us=5), 50e6) == pytest.approx(5e-6 + 1e-3)
    across = members(level(2, 50.0, forward_gb_per_s=25.0, on_rails=False, name="rail"))
    assert send_recv_s(across, 50e6) == pytest.approx(2e-3)


def test_stages_in_one_node_use_its_links() -> None:
    cluster = load_cluster("h100-sxm:2x8")
    inside, across = (send_recv_s(boundary(cluster, stride=4, index=i), 64 * MIB) for i in (0, 1))
    assert across > 5 * inside
