r"""Seconds of a collective over one process group, from the links that `hardware_profiles.topology.group` found.

Notation: a group of ``n`` members meets at levels ``i`` (innermost first) with fan ``f_i``, sustained bandwidth per
member ``B_i`` and latency ``a_i``; ``k_i`` is the product of the fans inside level ``i``, the members that
leave a unit side by side, each over its own link.

**Time of one collective.** Every collective here is a pipeline: chunks of the message travel ``L`` seconds of
latency while the busiest link needs ``V`` seconds for all bytes that cross it. Cut into ``q`` chunks, the time is
``(rounds + q) * (L / rounds + V / q)``, least at ``q = rounds * sqrt(V / L)``, which gives

    time = (sqrt(L) + sqrt(V))**2 = L + V + 2 * sqrt(L * V)

(Sanders, Speck & Traeff 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and scan").
The square root is the bandwidth ramp seen between 100 kB and 100 MB; at both ends the usual ``latency + bytes /
bandwidth`` is left.

**Latency** ``L``: rounds grow with the logarithm of the members, since messages that are small enough to feel it go
down a tree or by recursive doubling (Thakur, Rabenseifner & Gropp 2005, section 4; NCCL's tree and PAT). One-way
collectives take ``sum_i a_i (1 + log2 f_i)`` (one round for ready flags), an all-reduce up and down a
tree takes ``2 sum_i a_i log2 f_i``.

**Bytes** ``V``: levels are different links and different chunks use them at once, so the slowest level counts, not
their sum. All-gather and reduce-scatter run as flat rings, as NCCL does: every hop carries ``(n - 1) / n`` of the
message (NCCL-tests, doc/PERFORMANCE.md; Patarasuk & Yuan 2009), shared by the ``k_i`` rings where it leaves a unit. An
all-reduce is hierarchical: reduce-scatter inside, all-reduce of ``1 / k_i`` outside, all-gather inside, so
that level ``i`` carries ``2 (f_i - 1) / f_i / k_i`` of the message, never more than a flat ring; a switch that reduces
(NVLink SHARP) lets every member send its message once and receive ``1 / f_i`` of it once more.
"""

from __future__ import annotations

from math import log2, sqrt

from hardware_profiles.cluster import Group


def all_reduce_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds the sum of all members' ``num_bytes``.

    ``L = 2 sum_i a_i log2 f_i``; ``V = max_i min(2 (f_i - 1) / B_i, (f_i + 1) / R_i) / (f_i k_i) * num_bytes`` with
    ``R_i`` the rate of a reducing switch. Source: Rabenseifner's algorithm in Thakur, Rabenseifner & Gropp 2005,
    section 4; NCCL-tests PERFORMANCE.md; NVLink SHARP: ``(f + 1) / f`` fits 4 to 8 H200 in the table of S. Bekman's ML
    Engineering within 2 %.
    """
    if group.size == 1 or num_bytes <= 0:
        return 0.0
    latency_s, busiest_s, inner = 0.0, 0.0, 1
    for level in group.levels:
        fan = level.fan
        link_s = 2 * (fan - 1) / fan * num_bytes / inner / level.bytes_per_s
        if level.switch_reduce_bytes_per_s:
            link_s = min(link_s, (fan + 1) / fan * num_bytes / inner / level.switch_reduce_bytes_per_s)
        busiest_s = max(busiest_s, link_s)
        latency_s += 2 * level.latency_s * log2(fan)
        inner *= fan
    return _pipelined_s(latency_s, busiest_s)


def all_gather_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds all ``num_bytes`` (the whole gathered tensor), of which each had ``1 / n``.

    ``L = sum_i a_i (1 + log2 f_i)``; ``V = max_i (n - 1) / (n k_i B_i) * num_bytes``. Source: ring all-gather, Thakur,
    Rabenseifner & Gropp 2005, section 4; NCCL-tests PERFORMANCE.md.
    """
    if group.size == 1 or num_bytes <= 0:
        return 0.0
    return _pipelined_s(_one_way_latency_s(group), _ring_s(group, (group.size - 1) / group.size * num_bytes))


def reduce_scatter_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds its ``1 / n`` of the sum of all members' ``num_bytes`` (the whole input).

    The reversed all-gather: same hops, same bytes (Thakur, Rabenseifner & Gropp 2005, section 4).
    """
    return all_gather_s(group, num_bytes)


def all_to_all_s(group: Group, num_bytes: float) -> float:
    """Seconds to exchange ``num_bytes`` held per member, ``1 / n`` of it for each member (itself included).

    Of a member's bytes ``(f_i - 1) k_i / n`` go to members it meets at level ``i``, each over the member's own link:
    ``V = max_i (f_i - 1) k_i / (n B_i) * num_bytes``; ``L = sum_i a_i (1 + log2 f_i)``. Source: pairwise exchange,
    Thakur, Rabenseifner & Gropp 2005, section 4; NCCL-tests PERFORMANCE.md.
    """
    if group.size == 1 or num_bytes <= 0:
        return 0.0
    busiest_s, inner = 0.0, 1
    for level in group.levels:
        busiest_s = max(busiest_s, (level.fan - 1) * inner / group.size * num_bytes / level.bytes_per_s)
        inner *= level.fan
    return _pipelined_s(_one_way_latency_s(group), busiest_s)


def broadcast_s(group: Group, num_bytes: float) -> float:
    """Seconds until every member holds the ``num_bytes`` of one of them.

    ``L = sum_i a_i (1 + log2 f_i)``; ``V = max_i num_bytes / (k_i B_i)``: every byte passes every hop of the ring once.
    Source: Sanders, Speck & Traeff 2009; NCCL-tests PERFORMANCE.md (factor 1).
    """
    if group.size == 1 or num_bytes <= 0:
        return 0.0
    return _pipelined_s(_one_way_latency_s(group), _ring_s(group, num_bytes))


def send_recv_s(link: Group, num_bytes: float) -> float:
    """Seconds for ``num_bytes`` from one device to another over the two-member group of `topology.boundary`.

    ``a + num_bytes / B`` (Hockney 1994): one message, nothing to pipeline against.
    """
    if link.size == 1 or num_bytes <= 0:
        return 0.0
    level = link.levels[-1]
    return level.latency_s + num_bytes / level.bytes_per_s


def _pipelined_s(latency_s: float, busiest_s: float) -> float:
    """Best time of a pipeline with ``latency_s`` of rounds and ``busiest_s`` on its busiest link (module docstring)."""
    return latency_s + busiest_s + 2 * sqrt(latency_s * busiest_s)


def _one_way_latency_s(group: Group) -> float:
    """``sum_i a_i (1 + log2 f_i)``: ready flags, then a doubling per round."""
    return sum(level.latency_s * (1 + log2(level.fan)) for level in group.levels)


def _ring_s(group: Group, hop_bytes: float) -> float:
    """Seconds of the busiest link when every hop of the rings carries ``hop_bytes`` in total."""
    busiest_s, inner = 0.0, 1
    for level in group.levels:
        busiest_s = max(busiest_s, hop_bytes / inner / level.bytes_per_s)
        inner *= level.fan
    return busiest_s
