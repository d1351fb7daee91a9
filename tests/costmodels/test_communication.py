from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable
from math import log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.communication import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    broadcast_s,
    reduce_scatter_s,
    send_recv_s,
)
from costmodels.units import KIB, MIB
from hardware_profiles.cluster import Group, GroupLevel
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import boundary, group

Collective = Callable[[Group, float], float]
COLLECTIVES: list[Collective] = [all_reduce_s, all_gather_s, reduce_scatter_s, all_to_all_s, broadcast_s]
MEASURED = Path(__file__).parents[2].parent / "shared" / "validation" / "nccl_measured.csv"


def flat(size: int, *, gigabytes_per_s: float = 100.0, latency_us: float = 0.0, switch: float = 0.0) -> Group:
    level = GroupLevel(
        fan=size,
        bytes_per_s=gigabytes_per_s * 1e9,
        latency_s=latency_us / 1e6,
        switch_reduce_bytes_per_s=switch * 1e9,
    )
    return Group(size=size, levels=(level,))


def two_levels(inner: int, outer: int) -> Group:
    levels = (
        GroupLevel(fan=inner, bytes_per_s=100e9, latency_s=0.0),
        GroupLevel(fan=outer, bytes_per_s=10e9, latency_s=0.0),
    )
    return Group(size=inner * outer, levels=levels)


groups = st.builds(
    lambda name, size, stride: group(load_cluster(name), size=size, stride=stride),
    st.sampled_from(["h100-sxm:8x8", "mi250x:8x8", "ascend-910b:8x8"]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
)
sizes = st.integers(1, 2**34)


@pytest.mark.parametrize("collective", [*COLLECTIVES, send_recv_s])
def test_alone_or_nothing_to_send_is_free(collective: Collective) -> None:
    assert collective(Group(size=1, levels=()), 1e9) == 0
    assert collective(flat(2, latency_us=5), 0) == 0


@pytest.mark.parametrize("collective", [*COLLECTIVES, send_recv_s])
@given(group=groups, num_bytes=sizes, more=sizes)
def test_more_bytes_take_longer(collective: Collective, group: Group, num_bytes: int, more: int) -> None:
    assert 0 < collective(group, num_bytes) < collective(group, num_bytes + more)


@given(group=groups, num_bytes=sizes)
def test_an_all_reduce_is_at_most_a_reduce_scatter_and_an_all_gather(group: Group, num_bytes: int) -> None:
    both = reduce_scatter_s(group, num_bytes) + all_gather_s(group, num_bytes)
    assert all_reduce_s(group, num_bytes) <= both * (1 + 1e-9)


@pytest.mark.parametrize(
    ("collective", "bytes_over_the_busiest_link"),
    [(all_reduce_s, 1.75), (all_gather_s, 0.875), (reduce_scatter_s, 0.875), (all_to_all_s, 0.875), (broadcast_s, 1.0)],
)
def test_the_factors_of_nccl_tests(collective: Collective, bytes_over_the_busiest_link: float) -> None:
    assert collective(flat(8), 1e9) == pytest.approx(bytes_over_the_busiest_link * 1e9 / 100e9)


@pytest.mark.parametrize(
    ("collective", "rounds"),
    [(all_reduce_s, 6), (all_gather_s, 4), (reduce_scatter_s, 4), (all_to_all_s, 4), (broadcast_s, 4)],
)
def test_small_messages_pay_rounds(collective: Collective, rounds: int) -> None:
    assert collective(flat(8, latency_us=2), 1e-6) == pytest.approx(rounds * 2e-6, rel=1e-3)


def test_a_transfer_between_two_is_latency_and_wire_time() -> None:
    assert send_recv_s(flat(2, gigabytes_per_s=50, latency_us=5), 50e6) == pytest.approx(5e-6 + 1e-3)


def test_the_ramp_lies_between_latency_and_wire_time() -> None:
    latency_s, wire_s = 3 * 2 * 2e-6, 1.75 * 16 * MIB / 100e9
    got = all_reduce_s(flat(8, latency_us=2), 16 * MIB)
    assert got == pytest.approx((latency_s**0.5 + wire_s**0.5) ** 2)
    assert latency_s + wire_s < got < 2 * (latency_s + wire_s)


def test_members_of_a_node_share_the_data_on_the_network() -> None:
    # 4 nodes of 8: an eighth of the message per member over 10 GB/s, or all of it over 100 GB/s inside.
    num_bytes = 1e9
    assert all_reduce_s(two_levels(8, 4), num_bytes) == pytest.approx(2 * 3 / 4 * num_bytes / 8 / 10e9)
    assert all_gather_s(two_levels(8, 4), num_bytes) == pytest.approx(31 / 32 * num_bytes / 8 / 10e9)
    assert broadcast_s(two_levels(8, 4), num_bytes) == pytest.approx(num_bytes / 8 / 10e9)
    assert all_to_all_s(two_levels(8, 4), num_bytes) == pytest.approx(24 / 32 * num_bytes / 10e9)
    assert all_reduce_s(two_levels(16, 2), num_bytes) == pytest.approx(2 * 15 / 16 * num_bytes / 100e9)


def test_a_reducing_switch_helps_large_groups_only() -> None:
    ring, switched = (flat(8, gigabytes_per_s=364.5, switch=rate) for rate in (0.0, 310.5))
    assert all_reduce_s(ring, 1e9) / all_reduce_s(switched, 1e9) == pytest.approx((1.75 / 364.5) / (1.125 / 310.5))
    ring, switched = (flat(2, gigabytes_per_s=364.5, switch=rate) for rate in (0.0, 310.5))
    assert all_reduce_s(ring, 1e9) == all_reduce_s(switched, 1e9)
    assert all_gather_s(ring, 1e9) == all_gather_s(switched, 1e9)


def test_published_all_reduce_over_two_h100_nodes() -> None:
    # "Qwen3 on 16x H100" (8 x 400 Gb/s InfiniBand): 381.4 and 442.4 GB/s bus bandwidth at 256 MiB and 1 GiB.
    both = group(load_cluster("h100-sxm:2x8"), size=16, stride=1)
    for num_bytes, gigabytes_per_s in ((256 * MIB, 381.4), (1024 * MIB, 442.4)):
        measured_s = 2 * 15 / 16 * num_bytes / (gigabytes_per_s * 1e9)
        assert all_reduce_s(both, num_bytes) == pytest.approx(measured_s, rel=0.05)


def test_published_rings_on_lumi() -> None:
    # DeepSpeed communication log, 8 rings side by side: 4.77 to 4.97 GB/s bus bandwidth per GCD for 2 to 32 nodes.
    for nodes in (2, 8, 32):
        ring = group(load_cluster(f"mi250x:{nodes}x8"), size=nodes, stride=8)
        num_bytes = 2.73 * 1024 * MIB
        gigabytes_per_s = 2 * (nodes - 1) / nodes * num_bytes / all_reduce_s(ring, num_bytes) / 1e9
        assert gigabytes_per_s == pytest.approx(4.9, rel=0.05)


def test_stages_in_one_node_use_its_links() -> None:
    cluster = load_cluster("h100-sxm:2x8")
    inside, across = (send_recv_s(boundary(cluster, stride=4, index=i), 64 * MIB) for i in (0, 1))
    assert across / inside == pytest.approx(450 * 0.81 / (50 * 0.926), rel=0.05)


BANDS = {"up to 64 KiB": (0, 64 * KIB), "up to 8 MiB": (64 * KIB, 8 * MIB), "16 MiB and more": (8 * MIB, float("inf"))}
TOLERANCE = {"up to 64 KiB": 0.25, "up to 8 MiB": 0.20, "16 MiB and more": 0.15}
NAMES = {"NVIDIA A100-SXM4-80GB": "a100-80gb", "NVIDIA H100 80GB HBM3": "h100-sxm", "NVIDIA H200": "h200-sxm"}
FUNCTIONS = {
    "all_reduce": all_reduce_s,
    "all_gather": all_gather_s,
    "reduce_scatter": reduce_scatter_s,
    "alltoall": all_to_all_s,
}


@pytest.mark.skipif(not MEASURED.is_file(), reason="measured NCCL timings are not beside this checkout")
def test_against_measured_nccl(record_testsuite_property: Callable[[str, object], None]) -> None:
    """Median error over 8 devices by size band; smaller groups are printed beside it (two A100 reach less)."""
    errors: dict[tuple[str, bool, str], list[float]] = defaultdict(list)
    with MEASURED.open(newline="") as file:
        for row in csv.DictReader(file):
            if (name := NAMES.get(row["device"])) is None:
                continue
            members, num_bytes = int(row["num_gpus"]), int(row["bytes"])
            predicted = FUNCTIONS[row["op_name"]](group(load_cluster(name, 8), size=members, stride=1), num_bytes)
            band = next(band for band, (low, high) in BANDS.items() if low < num_bytes <= high)
            errors[name, members == 8, band].append(predicted / (float(row["us"]) / 1e6) - 1)
    for (name, whole, band), values in errors.items():
        error = statistics.median(map(abs, values))
        label = f"nccl {name} {'8' if whole else '2 and 4'} devices, {band}"
        record_testsuite_property(label, f"median {error:.3f}, bias {statistics.median(values):+.3f}, n {len(values)}")
        if whole:
            assert error <= TOLERANCE[band], label


def test_rounds_grow_with_the_logarithm() -> None:
    small = [all_gather_s(flat(size, latency_us=1), 1e-6) for size in (2, 16, 256)]
    assert small == pytest.approx([(1 + log2(size)) * 1e-6 for size in (2, 16, 256)], rel=1e-3)
