"""How fast groups of devices collect data over explicit links: the tightest cut.

A collective moves data into every part ``S`` of the node that lacks it, over the links between ``S`` and the rest. In
the time ``T = (n - 1) / n * M / B`` of an all-gather of ``M`` bytes over ``n`` members, ``|g - S| / n * M`` bytes
must enter an ``S`` that holds some members of ``g`` but not all, so

    B <= capacity(S) * (n - 1) / |g - S|

and the least of these bounds is reached by packing trees (ForestColl: Zhao et al. 2024, "Efficient Collective
Communications on Heterogeneous Network Fabrics", section 4). An all-to-all moves ``|g & S| |g - S| / n * M`` bytes
across, so there ``B <= capacity(S) * (n - 1) / (|g & S| |g - S|)``.

Two pictures bound a group, and the lower counts. *Alone*: only links between its own members and switches, for no
library relays through a device that is not in the group. *Together*: all links of the node, for the demand of all
groups at once, which share switches and bridges. Members that only other devices connect are bounded by the second
picture alone.

All cuts are tried, ``2 ** vertices`` of them, so a node has at most `MAX_VERTICES` devices and switches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
    sharing = [members for members in groups if len(members) > 1]
    pictures = []
    for members in sharing:
        alone = everything.subgraph([*members, *(vertex for vertex in everything if isinstance(vertex, str))])
        if all(nx.has_path(alone, members[0], member) for member in members[1:]):
            pictures.append(_least(alone, [members]))
    pictures.append(_least(everything, sharing))
    gather, exchange = (min(cuts, key=lambda cut: cut.bytes_per_s) for cuts in zip(*pictures, strict=True))
    return gather, exchange


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
        gather += split * beyond / (len(members) - 1)
        exchange += split * within * beyond / (len(members) - 1)
    return _tightest(vertices, subsets, capacity, gather), _tightest(vertices, subsets, capacity, exchange)


def _tightest(
    vertices: list[Vertex], subsets: NDArray[np.int64], capacity: NDArray[np.float64], demand: NDArray[np.float64]
) -> Cut:
    rates = np.divide(capacity, demand, out=np.full(len(subsets), np.inf), where=demand > 0)
    i = int(np.argmin(rates))
    chosen = tuple(vertex for j, vertex in enumerate(vertices) if subsets[i] >> j & 1)
    return Cut(bytes_per_s=float(rates[i]), capacity_bytes_per_s=float(capacity[i]), inside=chosen)
