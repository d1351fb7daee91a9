from __future__ import annotations

from collections import defaultdict
from math import log2

import pytest

from costmodels.algorithms import (
    halving_doubling,
    hierarchical,
    nvls,
    pairwise,
    ring,
    ring_broadcast,
    sharp,
    tree,
    tree_broadcast,
)
from hardware_profiles.cluster import Group
from tests.hardware_profiles.pictures import level, members

M = 1e9
NODE = level(8, 100.0, latency_us=1.0)
NETWORK = level(4, 10.0, latency_us=5.0, name="network")
SPINE = level(3, 5.0, latency_us=7.0, name="spine")


def ring_by_hand(group: Group, num_bytes: float) -> tuple[float, float]:
    """Hops and wire by walking over the ranks of every ring and counting what each member and each unit receives.

    As many rings as members in a node, each entering every node at another member; each carries its part.
    """
    units = [1]
    for each in group.levels:
        units.append(units[-1] * each.fan)
    per_node = units[1] if group.levels[0].name == "node" else 1
    received: dict[tuple[int, int], float] = defaultdict(float)
    hops = 0.0
    for number in range(per_node):
        inside = [(number + i) % per_node for i in range(per_node)]
        ranks = [node * per_node + i for node in range(group.size // per_node) for i in inside]
        for a, b in zip(ranks, [*ranks[1:], ranks[0]], strict=True):
            met = next(i for i in range(len(group.levels)) if a // units[i + 1] == b // units[i + 1])
            if number == 0 and b != ranks[0]:
                hops += group.levels[met].latency_s
            for i in range(1 if met and per_node > 1 else 0, met + 1):
                received[i, b // units[i]] += (group.size - 1) / group.size * num_bytes / per_node
    busiest = max(
        bytes_ / units[i] / group.levels[i].bytes_per_s if i or per_node == 1 else bytes_ / group.levels[i].bytes_per_s
        for (i, _), bytes_ in received.items()
    )
    return hops, busiest


@pytest.mark.parametrize("levels", [(NODE,), (NETWORK,), (NODE, NETWORK), (NODE, NETWORK, SPINE), (NODE, SPINE)])
def test_a_ring_is_what_its_ranks_do(levels: tuple[object, ...]) -> None:
    group = members(*levels)  # type: ignore[arg-type]
    way = ring(group, M)
    assert (way.hops_s, way.wire_s) == pytest.approx(ring_by_hand(group, M))


def test_halving_doubling_needs_powers_of_two() -> None:
    way = halving_doubling(members(NODE, NETWORK), M)
    assert way is not None
    assert way.hops_s == pytest.approx(3 * 1e-6 + 2 * 5e-6)
    assert way.wire_s == pytest.approx(7 / 8 * M / 100e9 + 3 / 4 * M / 8 / 10e9)
    assert halving_doubling(members(NODE, SPINE), M) is None


def test_halving_doubling_moves_what_its_exchanges_move() -> None:
    """Sixteen ranks, four a node: sum over rounds of what one rank sends, innermost partners last to be halved."""
    inner, outer = level(4, 100.0), level(4, 10.0, name="network")
    seconds, held = 0.0, M
    for rate in (100e9, 100e9, 10e9, 10e9):
        held /= 2
        seconds += held / rate
    way = halving_doubling(members(inner, outer), M)
    assert way is not None
    assert way.wire_s == pytest.approx(seconds)


def test_hierarchical_is_a_ring_at_each_of_two_or_three_levels() -> None:
    group = members(NODE, NETWORK, SPINE)
    way = hierarchical(group, M)
    assert way is not None
    alone = [ring(members(NODE), M), ring(members(NETWORK), M / 8), ring(members(SPINE), M / 32)]
    assert way.wire_s == pytest.approx(sum(part.wire_s for part in alone))
    assert way.hops_s == pytest.approx(sum(part.hops_s for part in alone))
    assert hierarchical(members(NODE), M) is None


def test_a_tree_has_logarithmic_hops_over_the_network() -> None:
    wide = level(64, 10.0, latency_us=5.0, name="network")
    way = tree(members(NODE, wide), M)
    assert way.hops_s == pytest.approx(2 * (7 * 1e-6 + log2(64) * 5e-6))
    assert ring(members(NODE, wide), M).hops_s > 10 * way.hops_s


def busiest_of_two_trees(nodes: int) -> float:
    """Messages that the busiest node sends in an all-reduce over NCCL's two binary trees, each with half of it.

    A node's parent differs in its lowest set bit; the second tree is the first mirrored, or shifted for odd numbers.
    """
    sent = [0.0] * nodes

    def parent(rank: int) -> int:
        bit = rank & -rank
        up = (rank ^ bit) | (bit << 1)
        return up if up < nodes else rank ^ bit

    for rank in range(1, nodes):
        for name in (lambda r: r, (lambda r: (r + 1) % nodes) if nodes % 2 else (lambda r: nodes - 1 - r)):
            sent[name(rank)] += 0.5  # the sum of its part of the tree, up
            sent[name(parent(rank))] += 0.5  # the result, down
    return max(sent)


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8, 16, 31, 64])
def test_the_busiest_node_of_two_trees(nodes: int) -> None:
    way = tree(members(level(nodes, 10.0, name="network")), M)
    assert way.wire_s == pytest.approx(busiest_of_two_trees(nodes) * M / 10e9)
    in_node = tree(members(level(8, 10.0), level(nodes, 1e6, name="network")), M)
    assert in_node.wire_s == pytest.approx(2 * M / 10e9)


def test_a_switch_that_reduces_sends_once_and_a_share_more() -> None:
    switch = level(8, 100.0, reduce_gb_per_s=90.0)
    way = nvls(members(switch), M)
    assert way is not None
    assert way.wire_s == pytest.approx(9 / 8 * M / 90e9)
    both = nvls(members(switch, level(2, 1.0, name="network")), M)
    assert both is not None
    assert both.wire_s == pytest.approx(2 * 1 / 2 * M / 8 / 1e9)
    assert nvls(members(NODE), M) is None
    assert nvls(members(NETWORK), M) is None


def test_network_switches_that_reduce_carry_the_message_once() -> None:
    way = sharp(members(NODE, NETWORK), M)
    assert way is not None
    assert way.wire_s == pytest.approx(max(2 * 7 / 8 * M / 100e9, M / 8 / 10e9))
    assert way.hops_s == pytest.approx(2 * 7 * 1e-6 + 2 * 5e-6)
    assert sharp(members(NODE), M) is None


def test_broadcasts() -> None:
    group = members(NODE, NETWORK)
    assert ring_broadcast(group, M).wire_s == tree_broadcast(group, M).wire_s == pytest.approx(M / 8 / 10e9)
    assert tree_broadcast(group, M).hops_s == pytest.approx(3 * 1e-6 + 2 * 5e-6)
    assert ring_broadcast(group, M).hops_s == ring(group, M).hops_s


def test_what_changes_rails_is_forwarded_in_the_node() -> None:
    rail = level(4, 10.0, name="rail", forward_gb_per_s=50.0)
    crossing = [7 / 32 * M, 24 / 32 * M]
    plain = pairwise(members(NODE, NETWORK), crossing)
    assert plain.wire_s == pytest.approx(24 / 32 * M / 10e9)
    fast = members(NODE, level(4, 1000.0, name="rail", forward_gb_per_s=50.0))
    assert pairwise(fast, crossing).wire_s == pytest.approx(7 / 32 * M / 100e9 + 24 / 32 * M * 7 / 8 / 50e9)
    # One member a node stays on its rail.
    assert pairwise(members(rail), [3 / 4 * M]).wire_s == pytest.approx(3 / 4 * M / 10e9)
    across = members(level(4, 1000.0, name="rail", forward_gb_per_s=50.0, on_rails=False))
    assert ring(across, M).wire_s == pytest.approx(3 / 4 * M / 50e9)
    assert tree(across, M).wire_s == pytest.approx(2 * M / 50e9)
    # Rails at two levels: seven of eight members of a node are on other rails, wherever they are.
    spine = level(2, 1000.0, name="spine", forward_gb_per_s=50.0)
    twice = members(NODE, level(4, 1000.0, name="rail", forward_gb_per_s=50.0), spine)
    moved = [0.0, 1e9, 1e9]
    assert pairwise(twice, moved).wire_s == pytest.approx(2 * 1e9 * 7 / 8 / 50e9)
