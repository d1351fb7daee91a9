"""Seconds of a collective over one process group, from the links that `hardware_profiles.topology.group` found.

**Algorithms** (`costmodels.algorithms`) give the seconds ``L`` of dependent hops and the seconds ``V`` of the busiest
link. Inside the node the copy of a member's own shard comes to the links' time, ``M / n / C``, for the same kernel
does both: with it one link rate explains two devices as well as eight, which otherwise seem to reach less of their
links the fewer they are.

**Protocols** turn both into seconds:

- ``ll``: ``L + 2 V``. Every word travels with a flag, so no handshake is needed and half the bandwidth is lost
  (NCCL's LL).
- ``simple``: ``(sqrt(L + max_i a_i) + sqrt(V))**2``, a handshake of one hop and then a pipeline: ``q`` chunks take
  ``(1 + q / r) * (L + V r / q)``, least at ``q = r sqrt(V / L)`` (Sanders, Speck & Traeff 2009, "Two-tree algorithms
  for full bandwidth broadcast, reduction and scan"). The square is the ramp seen between 100 kB and 100 MB.
- ``hockney``: ``L + V`` (Hockney 1994): libraries that send whole messages.

The library takes the least over the algorithms and protocols that its profile lists, for every size, and adds its
launch. There is no fitted constant here: all figures are the profile's.

**Host-driven libraries** (gloo) move data with the members' processors, so that what counts is what a member moves on
average, not its busiest link: ``(n - 1) / n * M`` of a broadcast. Steps in which every member waits for another take
the longest of ``n`` delays, which are exponential where the operating system hands out processors: hops times
``sum_(j<=n) 1 / j`` (Hoefler, Schneider & Lumsdaine 2010, "Characterizing the influence of system noise on large-scale
applications by simulation", on why delays grow with the members). An all-to-all's messages leave together and are
handled one after the other: the hops of a ring, once. torch gathers into a buffer of its own and copies it out, and
reduce-scatters by an all-reduce of a copy (its ProcessGroupGloo.cpp, ``allgather`` and
``reduce_scatter_tensor_coalesced``): both add ``M / C``, and no own shard is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import sqrt

from costmodels import algorithms
from costmodels.algorithms import Way
from hardware_profiles.cluster import Group


def all_reduce_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds the sum of all members' ``num_bytes``.

    Least of `algorithms.ring`, `algorithms.halving_doubling` and `algorithms.hierarchical` there and back,
    `algorithms.tree`, `algorithms.nvls` and `algorithms.sharp`, as far as the library has them.
    """
    return _least_s(group, num_bytes, all_reduce_ways)


def all_gather_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds all ``num_bytes`` (the whole gathered tensor), of which each had ``1 / n``.

    Least of `algorithms.ring`, `algorithms.halving_doubling` and `algorithms.hierarchical`, as far as the library has
    them.
    """
    return _least_s(group, num_bytes, all_gather_ways) + _staging_s(group, num_bytes)


def reduce_scatter_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds its ``1 / n`` of the sum of all members' ``num_bytes`` (the whole input).

    The reversed all-gather: same hops, same bytes (Thakur, Rabenseifner & Gropp 2005, section 4.2); where the library
    is host-driven, an all-reduce.
    """
    if group.library.host_driven:
        return all_reduce_s(group, num_bytes) + _staging_s(group, num_bytes)
    return all_gather_s(group, num_bytes)


def all_to_all_s(group: Group, num_bytes: float) -> float:
    """Seconds to exchange ``num_bytes`` held per member, ``1 / n`` of it for each member (itself included).

    `algorithms.pairwise` with ``(f_i - 1) k_i / n`` of a member's bytes for the members that it meets at level ``i``.
    """
    if group.size == 1 or num_bytes <= 0:
        return 0.0
    crossing, inner = [], 1
    for level in group.levels:
        crossing.append((level.fan - 1) * inner / group.size * num_bytes)
        inner *= level.fan
    return exchange_s(group, crossing, num_bytes / group.size)


def all_to_all_uneven_s(group: Group, num_bytes: Sequence[Sequence[float]]) -> float:
    """Seconds of an all-to-all in which member ``i`` has ``num_bytes[i][j]`` for member ``j`` (shape ``[n, n]``).

    Members are in the order of their ranks, so that ``i // k`` names the unit of ``k`` members that ``i`` is in.
    `algorithms.pairwise` with the most that any member sends or receives at each level: all wait for it. Equal
    entries give `all_to_all_s`. Raises `ValueError` for another shape.
    """
    n = group.size
    if len(num_bytes) != n or any(len(row) != n for row in num_bytes):
        raise ValueError(f"num_bytes must be {n} rows of {n}, one per member of the group")
    if n == 1 or not any(map(any, num_bytes)):
        return 0.0
    crossing, inner = [], 1
    for level in group.levels:
        outer = inner * level.fan
        met = [[j for j in range(n) if i // outer == j // outer and i // inner != j // inner] for i in range(n)]
        sent = max(sum(num_bytes[i][j] for j in met[i]) for i in range(n))
        received = max(sum(num_bytes[j][i] for j in met[i]) for i in range(n))
        crossing.append(max(sent, received))
        inner = outer
    return exchange_s(group, crossing, max(num_bytes[i][i] for i in range(n)))


def exchange_s(group: Group, crossing_bytes: Sequence[float], own_bytes: float) -> float:
    """Seconds of an exchange in which every member moves ``crossing_bytes[i]`` at level ``i`` and keeps ``own_bytes``.

    Launch, `algorithms.pairwise` and copy of what stays; nothing for one member. NCCL's sends use no ``ll`` beyond 16
    KiB a pair, so it is not priced.
    """
    if group.size == 1 or own_bytes + sum(crossing_bytes) <= 0:
        return 0.0
    way = algorithms.pairwise(group, crossing_bytes)
    if group.library.host_driven:
        way, own_bytes = replace(way, hops_s=algorithms.ring(group, 0.0).hops_s), 0.0
    return group.library.launch_s + _protocols_s(group, way, own_bytes, flags=False)


def broadcast_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds the ``num_bytes`` of one of them.

    Least of `algorithms.ring_broadcast` and `algorithms.tree_broadcast`.
    """
    return _least_s(group, num_bytes, broadcast_ways)


def send_recv_s(link: Group, num_bytes: float) -> float:
    """Seconds for ``num_bytes`` from one device to another over the two-member group of `topology.boundary`.

    ``launch + a + num_bytes / B`` (Hockney 1994): one message, nothing to pipeline against. Between rails it passes
    through the node, whose rate then counts where it is lower.
    """
    if link.size == 1 or num_bytes <= 0:
        return 0.0
    level = link.levels[-1]
    rate = level.bytes_per_s if algorithms.stays_on_rail(level) else min(level.bytes_per_s, level.forward_bytes_per_s)
    return link.library.launch_s + level.latency_s + num_bytes / rate


def barrier_s(group: Group) -> float:
    """Seconds until every member knows that all have arrived: an all-reduce of nothing, ``launch + min L``."""
    if group.size == 1:
        return 0.0
    return group.library.launch_s + min(way.hops_s for way in all_reduce_ways(group, 0.0))


def all_reduce_ways(group: Group, num_bytes: float) -> list[Way]:
    """Every way that the library has for an all-reduce; what spreads and what collects is the same, there and back."""
    known = group.library.algorithms
    one_way = all_gather_ways(group, num_bytes)
    ways = [Way(way.algorithm, 2 * way.hops_s, 2 * way.wire_s, 2 * way.node_s) for way in one_way]
    more = ("tree", algorithms.tree), ("nvls", algorithms.nvls), ("sharp", algorithms.sharp)
    return [*ways, *(way for name, function in more if name in known and (way := function(group, num_bytes)))]


def all_gather_ways(group: Group, num_bytes: float) -> list[Way]:
    """Every way that the library has for an all-gather or a reduce-scatter."""
    known = group.library.algorithms
    more = ("halving-doubling", algorithms.halving_doubling), ("hierarchical", algorithms.hierarchical)
    others = (way for name, function in more if name in known and (way := function(group, num_bytes)))
    ways = [algorithms.ring(group, num_bytes), *others]
    if group.library.host_driven:
        slowest = sum(1 / j for j in range(1, group.size + 1))
        return [replace(way, hops_s=way.hops_s * slowest) for way in ways]
    return ways


def broadcast_ways(group: Group, num_bytes: float) -> list[Way]:
    """The ways to broadcast, which every library has."""
    if group.library.host_driven:
        num_bytes *= (group.size - 1) / group.size
    return [algorithms.ring_broadcast(group, num_bytes), algorithms.tree_broadcast(group, num_bytes)]


def _least_s(group: Group, num_bytes: float, ways: Callable[[Group, float], list[Way]]) -> float:
    """Launch and the least of all ways and protocols; nothing for one member or no bytes."""
    if group.size == 1 or num_bytes <= 0:
        return 0.0
    own_bytes = 0.0 if ways is broadcast_ways or group.library.host_driven else num_bytes / group.size
    return group.library.launch_s + min(_protocols_s(group, way, own_bytes) for way in ways(group, num_bytes))


def _protocols_s(group: Group, way: Way, own_bytes: float, *, flags: bool = True) -> float:
    """Seconds of the best protocol (module docstring); ``flags`` allows ``ll``. A switch that reduces needs no own
    copy."""
    copy_s = 0.0 if way.algorithm == "nvls" else own_bytes / group.library.copy_bytes_per_s
    hops_s, wire_s = way.hops_s, max(way.wire_s, way.node_s + copy_s)
    known = group.library.protocols
    seconds = []
    if "ll" in known and flags:
        seconds.append(hops_s + 2 * wire_s)
    if "hockney" in known:
        seconds.append(hops_s + wire_s)
    if "simple" in known:
        handshake_s = max(level.latency_s for level in group.levels)
        seconds.append((sqrt(handshake_s + hops_s) + sqrt(wire_s)) ** 2)
    return min(seconds)


def _staging_s(group: Group, num_bytes: float) -> float:
    """Copy of the whole message, in host-driven libraries."""
    if group.size == 1 or num_bytes <= 0 or not group.library.host_driven:
        return 0.0
    return num_bytes / group.library.copy_bytes_per_s
