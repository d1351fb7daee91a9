"""How fast groups of devices collect data over explicit links: the tightest cut.

Libraries run collectives as rings. Whatever part ``S`` of the node holds some members of a group but not all, every
ring of the group enters it, and its data all pass there: with all rings together at ``B``, and so many groups split
by ``S``,

    B <= capacity(S) / number of groups that S splits

An all-to-all of ``M`` bytes over a group ``g`` of ``n`` moves ``|g & S| |g - S| / n * M`` bytes into ``S`` in the
time ``(n - 1) / n * M / B``, so there ``B <= capacity(S) * (n - 1) / (|g & S| |g - S|)``. (Packing trees instead of
rings would let an all-gather have ``(n - 1) / |g - S|`` times the cut: ForestColl, Zhao et al. 2024, "Efficient
Collective Communications on Heterogeneous Network Fabrics". No library of today does.)

Of three pictures of the node each group has the one that its library would use:

- *direct*: the links between its members, where those alone connect them. No library relays through a device that is
  not in the group, nor leaves a link between two devices for the host.
- *shared*: the members and all switches and bridges, with the demand of all groups that need them; what is shared is
  divided.
- *relayed*: where only other devices connect the members, a ring over the shortest paths (the widest of them), whose
  links are divided among all rings that pass.

All cuts are tried, ``2 ** vertices`` of them, so a node has at most `MAX_VERTICES` devices and switches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from hardware_profiles.cluster import MAX_VERTICES, Link, Vertex

Members = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The tightest cut: bandwidth per member that it leaves, and which part of the node it separates."""

    bytes_per_s: float
    capacity_bytes_per_s: float
    inside: tuple[Vertex, ...]
    """The part; of a relayed group the two ends of its busiest link."""
    relayed: bool = False


def graph(links: Iterable[Link]) -> nx.Graph[Vertex]:
    """The links as an undirected graph; parallel links add up. Edge attribute ``bytes_per_s``: what collectives
    reach."""
    result: nx.Graph[Vertex] = nx.Graph()
    for link in links:
        a, b = link.between
        known = result.edges[a, b]["bytes_per_s"] if result.has_edge(a, b) else 0.0
        result.add_edge(a, b, bytes_per_s=known + link.bytes_per_s * link.collective_fraction)
    return result


@lru_cache(maxsize=512)
def tightest_cuts(links: tuple[Link, ...], groups: tuple[Members, ...]) -> tuple[Cut, Cut]:
    """(all-gather, all-to-all) over ``groups`` that communicate at once; the worst group counts.

    ``groups`` are disjoint sets of devices of one node, at least one with two members or more.
    """
    everything = graph(links)
    switches = [vertex for vertex in everything if isinstance(vertex, str)]
    pictures, sharing, relayed = [], [], []
    for members in groups:
        if len(members) < 2:
            continue
        if _joined(direct := everything.subgraph(members), members):
            pictures.append(_least(direct, [members]))
        elif _joined(everything.subgraph([*members, *switches]), members):
            sharing.append(members)
        else:
            relayed.append(members)
    if sharing:
        present = [device for members in sharing for device in members]
        pictures.append(_least(everything.subgraph([*present, *switches]), sharing))
    if relayed:
        pictures.append(_relayed(everything, relayed))
    gather, exchange = (min(cuts, key=lambda cut: cut.bytes_per_s) for cuts in zip(*pictures, strict=True))
    return gather, exchange


def _joined(network: nx.Graph[Vertex], members: Members) -> bool:
    first, *others = members
    reached = nx.node_connected_component(network, first)
    return all(member in reached for member in others)


def _relayed(network: nx.Graph[Vertex], groups: Sequence[Members]) -> tuple[Cut, Cut]:
    """Rings, and exchanges of all pairs, over the shortest paths of the whole node, all groups at once."""
    hops: dict[tuple[Vertex, Vertex], float] = defaultdict(float)
    pairs: dict[tuple[Vertex, Vertex], float] = defaultdict(float)
    for members in groups:
        for a, b in zip(members, (*members[1:], members[0]), strict=True):
            for hop in pairwise(_path(network, a, b)):
                hops[hop] += 1
        for a, b in permutations(members, 2):
            for hop in pairwise(_path(network, a, b)):
                pairs[hop] += 1 / (len(members) - 1)
    return _busiest(network, hops), _busiest(network, pairs)


def _path(network: nx.Graph[Vertex], a: Vertex, b: Vertex) -> list[Vertex]:
    """The shortest path, of equals the one whose narrowest link is widest."""

    def narrowest(path: list[Vertex]) -> float:
        return min(float(network.edges[hop]["bytes_per_s"]) for hop in pairwise(path))

    return max(nx.all_shortest_paths(network, a, b), key=narrowest)


def _busiest(network: nx.Graph[Vertex], uses: Mapping[tuple[Vertex, Vertex], float]) -> Cut:
    rates = {hop: float(network.edges[hop]["bytes_per_s"]) / count for hop, count in uses.items()}
    hop = min(rates, key=lambda each: (rates[each], str(each)))
    return Cut(
        bytes_per_s=rates[hop],
        capacity_bytes_per_s=float(network.edges[hop]["bytes_per_s"]),
        inside=hop,
        relayed=True,
    )


def _least(network: nx.Graph[Vertex], groups: Sequence[Members]) -> tuple[Cut, Cut]:
    """The tightest cuts of one picture, every subset of its vertices tried."""
    vertices = sorted(network, key=str)
    assert len(vertices) <= MAX_VERTICES, f"{len(vertices)} vertices"
    subsets = np.arange(1, 2 ** len(vertices) - 1, dtype=np.int64)
    inside = {vertex: (subsets >> i) & 1 for i, vertex in enumerate(vertices)}
    capacity = np.zeros(len(subsets))
    for a, b in network.edges:
        capacity += network.edges[a, b]["bytes_per_s"] * (inside[a] != inside[b])
    gather, exchange = np.zeros(len(subsets)), np.zeros(len(subsets))
    for members in groups:
        within = sum((inside[member] for member in members), start=np.zeros(len(subsets)))
        beyond = len(members) - within
        split = (within > 0) & (beyond > 0)
        gather += split
        exchange += split * within * beyond / (len(members) - 1)
    return _tightest(vertices, subsets, capacity, gather), _tightest(vertices, subsets, capacity, exchange)


def _tightest(
    vertices: list[Vertex], subsets: NDArray[np.int64], capacity: NDArray[np.float64], demand: NDArray[np.float64]
) -> Cut:
    rates = np.divide(capacity, demand, out=np.full(len(subsets), np.inf), where=demand > 0)
    i = int(np.argmin(rates))
    chosen = tuple(vertex for j, vertex in enumerate(vertices) if subsets[i] >> j & 1)
    return Cut(bytes_per_s=float(rates[i]), capacity_bytes_per_s=float(capacity[i]), inside=chosen)
