from __future__ import annotations

from itertools import combinations, permutations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.cluster import Links
from hardware_profiles.links import tightest_cuts
from hardware_profiles.load import load_cluster
from tests.hardware_profiles.pictures import links

GB = 1e9
FULL = links(*((a, b, 10.0) for a in range(4) for b in range(a)))
RING = links((0, 1, 10.0), (1, 2, 10.0), (2, 3, 10.0), (3, 0, 10.0))


def gather(fabric: Links, *groups: tuple[int, ...]) -> float:
    return tightest_cuts(fabric.links, groups)[0].bytes_per_s / GB


def exchange(fabric: Links, *groups: tuple[int, ...]) -> float:
    return tightest_cuts(fabric.links, groups)[1].bytes_per_s / GB


def test_a_pair_has_its_link() -> None:
    assert gather(RING, (0, 1)) == pytest.approx(10)
    assert exchange(RING, (0, 1)) == pytest.approx(10)


def test_a_full_mesh_gives_every_member_its_links_to_the_others() -> None:
    for size in (2, 3, 4):
        assert gather(FULL, tuple(range(size))) == pytest.approx(10 * (size - 1))
        assert exchange(FULL, tuple(range(size))) == pytest.approx(10 * (size - 1))


def test_a_ring_carries_two_ways_and_an_exchange_across_its_middle() -> None:
    assert gather(RING, (0, 1, 2, 3)) == pytest.approx(20)
    # Two and two: of four pairs each way, two links.
    assert exchange(RING, (0, 1, 2, 3)) == pytest.approx(20 * 3 / 4)
    assert gather(RING, (0, 1, 2)) == pytest.approx(10)


def test_pairs_without_a_link_are_relayed_over_one_path_that_they_share() -> None:
    """Opposite corners of a ring: both pairs go through the others, one way there and the same way back."""
    gathered, _ = tightest_cuts(RING.links, ((0, 2),))
    assert (gathered.bytes_per_s, gathered.relayed) == (pytest.approx(10e9), True)
    # 0-1-2 and 1-0-3 or 1-2-3 have a link in common.
    assert gather(RING, (0, 2), (1, 3)) == pytest.approx(5)
    line = links((0, 1, 10.0), (1, 2, 40.0), (2, 3, 10.0))
    assert gather(line, (0, 3)) == pytest.approx(10)
    assert gather(line, (1, 2)) == pytest.approx(40)


def test_the_wider_of_two_shortest_paths_relays() -> None:
    assert gather(links((0, 1, 10.0), (1, 3, 10.0), (0, 2, 20.0), (2, 3, 15.0)), (0, 3)) == pytest.approx(15)


def test_devices_without_a_link_are_never_better_off_than_with_one() -> None:
    frontier = load_cluster("frontier:1x8").machines[0].node.fabric
    assert isinstance(frontier, Links)
    linked = {tuple(sorted(map(int, link.between))): gather(frontier, link.between) for link in frontier.links}  # type: ignore[arg-type]
    for pair in combinations(range(8), 2):
        if pair not in linked:
            assert gather(frontier, pair) <= min(linked.values()) * 2
            assert gather(frontier, pair) < max(linked.values())


def test_own_links_are_used_and_the_host_left_alone() -> None:
    quads = links(*((a, b, 30.0) for a in range(4) for b in range(a)), *((d, "cpu", 16.0) for d in range(6)))
    assert gather(quads, (0, 1, 2, 3)) == pytest.approx(90)
    assert gather(quads, (4, 5)) == pytest.approx(16)


def test_a_bridge_between_two_switches_is_shared() -> None:
    box = links(
        *((device, "left", 25.0) for device in (0, 1)),
        *((device, "right", 25.0) for device in (2, 3)),
        ("left", "right", 20.0),
    )
    assert gather(box, (0, 1), (2, 3)) == pytest.approx(25)
    assert gather(box, (0, 1, 2, 3)) == pytest.approx(20)
    assert gather(box, (0, 2), (1, 3)) == pytest.approx(10)
    assert tightest_cuts(box.links, ((0, 2), (1, 3)))[0].capacity_bytes_per_s == pytest.approx(20e9)
    # Of an all-to-all of four, two and two pairs cross: 4 / 3 of what a member sends.
    assert exchange(box, (0, 1, 2, 3)) == pytest.approx(20 * 3 / 4)


def test_parallel_links_add_up() -> None:
    assert gather(links((0, 1, 10.0), (0, 1, 15.0)), (0, 1)) == pytest.approx(25)


@st.composite
def fabrics(draw: st.DrawFn) -> Links:
    size = draw(st.integers(3, 6))
    tree = [(i, draw(st.integers(0, i - 1)), draw(st.sampled_from([5.0, 10.0, 40.0]))) for i in range(1, size)]
    more = draw(
        st.lists(
            st.tuples(st.integers(0, size - 1), st.integers(0, size - 1), st.sampled_from([5.0, 20.0])), max_size=6
        )
    )
    return links(*tree, *((a, b, rate) for a, b, rate in more if a != b))


@given(fabrics())
def test_against_maximum_flow(fabric: Links) -> None:
    """What separates some members from others is what separates some pair of them: the least maximum flow of any."""
    network = nx.Graph()
    for link in fabric.links:
        a, b = link.between
        known = network.edges[a, b]["capacity"] if network.has_edge(a, b) else 0.0
        network.add_edge(a, b, capacity=known + link.bytes_per_s)
    devices = sorted(network)
    least = min(nx.maximum_flow_value(network, a, b) for a, b in combinations(devices, 2))
    assert gather(fabric, tuple(devices)) * GB == pytest.approx(least)


@given(fabrics(), st.randoms(use_true_random=False))
def test_names_of_devices_do_not_matter(fabric: Links, random: object) -> None:
    devices = sorted({end for link in fabric.links for end in link.between}, key=str)
    shuffled = list(devices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    renamed = dict(zip(devices, shuffled, strict=True))
    other = links(
        *((renamed[a], renamed[b], link.bytes_per_s / GB) for link in fabric.links for a, b in [link.between])
    )
    group = tuple(int(device) for device in devices[:3])
    moved = tuple(sorted(int(renamed[device]) for device in group))
    assert gather(fabric, group) == pytest.approx(gather(other, moved))
    assert exchange(fabric, group) == pytest.approx(exchange(other, moved))


def test_a_symmetric_ring_is_the_same_from_everywhere() -> None:
    pairs = [(a, b) for a, b in permutations(range(4), 2) if (a - b) % 4 in (1, 3)]
    assert [gather(RING, pair) for pair in pairs] == pytest.approx([10] * len(pairs))
