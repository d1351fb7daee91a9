"""The ways to run a collective, each as two numbers: what its dependent hops take, and what its busiest link carries.

Notation: a group of ``n`` members meets at levels ``i`` (innermost first) with fan ``f_i``, sustained bandwidth per
member ``B_i`` and hop latency ``a_i``; ``k_i`` is the product of the fans inside level ``i``, the members that leave a
unit side by side, each over its own link. ``M`` is the message in bytes.

Levels are different links. Where a message is cut into chunks that flow through all of them at once (ring, tree,
switches) the busiest level counts; where one level is finished before the next begins (halving-doubling,
hierarchical) they add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

from hardware_profiles.cluster import NODE, Group, GroupLevel


@dataclass(frozen=True)
class Way:
    """One algorithm for one message: its name, seconds of hops and seconds of the busiest link."""

    algorithm: str
    hops_s: float
    wire_s: float
    node_s: float
    """Of ``wire_s``, what the links inside the node are busy with."""


def ring(group: Group, num_bytes: float) -> Way:
    """All-gather or reduce-scatter around as many rings as members leave a node side by side, one over each of their
    links.

    Hops ``sum_i a_i (n / k_i - n / k_(i+1))``, the edges of a ring between the units of each level, the closing one
    not counted. Wire ``max_i (n - 1) / n * M / (k_i B_i)``; inside the node ``(f_0 - 1) / f_0`` of that where the
    group goes on over the network, since of ``f_0`` rings one brings a member its data from there. Source: Patarasuk
    & Yuan 2009, "Bandwidth optimal all-reduce algorithms"; NCCL-tests, doc/PERFORMANCE.md.
    """
    return Way("ring", _ring_hops_s(group), *_busiest_s(group, (group.size - 1) / group.size * num_bytes))


def halving_doubling(group: Group, num_bytes: float) -> Way | None:
    """Reduce-scatter by recursive halving, or all-gather by doubling; None unless all fans are powers of two.

    Hops ``sum_i a_i log2 f_i``. Wire ``sum_i (f_i - 1) / f_i * M / (k_i B_i)``: level by level, outside only with
    what the levels inside leave of the message. Source: Thakur, Rabenseifner & Gropp 2005, "Optimization of
    collective communication operations in MPICH", sections 4.1, 4.2 and 4.5.
    """
    if any(level.fan & (level.fan - 1) for level in group.levels):
        return None
    hops_s = sum(level.latency_s * log2(level.fan) for level in group.levels)
    phases_s = _phases_s(group, num_bytes)
    return Way("halving-doubling", hops_s, sum(phases_s), _inside(group, phases_s))


def hierarchical(group: Group, num_bytes: float) -> Way | None:
    """A ring at each level in turn, two or three of them; None for a single level.

    Hops ``sum_i a_i (f_i - 1)``. Wire ``sum_i (f_i - 1) / f_i * M / (k_i B_i)``. Source: Cho et al. 2019,
    "BlueConnect"; Mikami et al. 2018, "Massively distributed SGD" (2-D torus all-reduce).
    """
    if len(group.levels) < 2:
        return None
    hops_s = sum(level.latency_s * (level.fan - 1) for level in group.levels)
    phases_s = _phases_s(group, num_bytes)
    return Way("hierarchical", hops_s, sum(phases_s), _inside(group, phases_s))


def tree(group: Group, num_bytes: float) -> Way:
    """All-reduce up and down two binary trees over the nodes, with a chain inside each node.

    Hops ``2 (a_0 (f_0 - 1) + sum_i a_i ceil(log2 f_i))``, the sum over the levels above the node. Wire ``max_i p_i M
    / (k_i B_i)``: a node that is inside one tree is a leaf of the other, and so sends half the message up in both and
    half to each of two children, ``p = 2``; of two nodes each sends once, ``p = 1``, of three the busiest ``p = 3 /
    2``. A chain inside carries the message up and down, ``p_0 = 2`` (one link of two members: each way, ``p_0 = 1``).
    Source: Sanders, Speck & Traeff 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and scan";
    Jeaugey 2019, "Massively scale your deep learning training with NCCL 2.4".
    """
    wires_s = _tree_wires_s(group, num_bytes)
    return Way("tree", _tree_hops_s(group), max(wires_s), _inside(group, wires_s))


def nvls(group: Group, num_bytes: float) -> Way | None:
    """All-reduce inside the node's switch, and by `tree` between nodes; None where the switch does not reduce.

    Every member sends its message once, and receives ``1 / f`` of it once more: wire ``(f + 1) / f * M / R`` in the
    switch of rate ``R``, the tree's above; hops those of `tree`, which agree with small messages better than the
    switch's two. Source: NVLink SHARP (NVIDIA Hopper whitepaper); ``(f + 1) / f`` fits 4 to 8 H200 in the table of S.
    Bekman's ML Engineering within 2 %.
    """
    node = group.levels[0]
    if node.name != NODE or not node.reduce_bytes_per_s:
        return None
    in_switch_s = (node.fan + 1) / node.fan * num_bytes / node.reduce_bytes_per_s
    return Way("nvls", _tree_hops_s(group), max([in_switch_s, *_tree_wires_s(group, num_bytes)[1:]]), 0.0)


def sharp(group: Group, num_bytes: float) -> Way | None:
    """All-reduce by the network's switches, between rings inside the node; None inside one node.

    Above the node every link carries the message once each way: wire ``M / (k_i B_i)``, hops ``2 a_i`` up the
    switches and down; inside the ring's. Source: Graham et al. 2016, "Scalable hierarchical aggregation protocol
    (SHArP)".
    """
    if all(level.name == NODE for level in group.levels):
        return None
    hops_s = sum(2 * level.latency_s * (level.fan - 1 if level.name == NODE else 1) for level in group.levels)
    passes = [2 * (level.fan - 1) / level.fan if level.name == NODE else 1.0 for level in group.levels]
    wires_s = _wires_s(group, num_bytes, passes)
    return Way("sharp", hops_s, max(wires_s), _inside(group, wires_s))


def ring_broadcast(group: Group, num_bytes: float) -> Way:
    """From one member around a ring: hops of `ring`; wire ``max_i M / (k_i B_i)``, every byte passing every hop once.

    Source: NCCL-tests, doc/PERFORMANCE.md (factor 1).
    """
    return Way("ring", _ring_hops_s(group), *_busiest_s(group, num_bytes))


def tree_broadcast(group: Group, num_bytes: float) -> Way:
    """From one member down a binary tree at each level: hops ``sum_i a_i ceil(log2 f_i)``, wire of `ring_broadcast`.

    Source: Sanders, Speck & Traeff 2009 (two trees reach the full bandwidth).
    """
    hops_s = sum(level.latency_s * ceil(log2(level.fan)) for level in group.levels)
    return Way("tree", hops_s, *_busiest_s(group, num_bytes))


def pairwise(group: Group, crossing_bytes: Sequence[float]) -> Way:
    """All-to-all whose busiest member moves ``crossing_bytes[i]`` over its links of level ``i``.

    Wire ``max_i crossing_i / X_i`` with ``X_i`` the level's bandwidth for exchanges; hops ``sum_i a_i (1 + log2
    f_i)``, the fewest rounds for small messages. At a level of rails ``1 - 1 / f_0`` of the traffic has to change
    rails and is forwarded inside the node, beside what stays there. Source: Thakur, Rabenseifner & Gropp 2005,
    section 4.4; Bruck et al. 1997 for the rounds; PXN in NCCL 2.12.
    """
    first = group.levels[0]
    other_rails = 1 - 1 / first.fan if first.name == NODE else 0.0
    wires_s, forwarded_s = [], 0.0
    for level, moved_bytes in zip(group.levels, crossing_bytes, strict=True):
        wires_s.append(moved_bytes / level.exchange_bytes_per_s)
        if level.forward_bytes_per_s:
            forwarded_s += moved_bytes * (other_rails if level.on_rails else 1.0) / level.forward_bytes_per_s
    node_s = _inside(group, wires_s) + forwarded_s
    hops_s = sum(level.latency_s * (1 + log2(level.fan)) for level in group.levels)
    return Way("pairwise", hops_s, max([*wires_s, node_s]), node_s)


def stays_on_rail(level: GroupLevel) -> bool:
    """Neighbours at this level need no relay inside their nodes."""
    return level.on_rails or not level.forward_bytes_per_s


def _ring_hops_s(group: Group) -> float:
    hops_s, inner = 0.0, 1
    for level in group.levels:
        hops_s += level.latency_s * (group.size // inner - group.size // (inner * level.fan))
        inner *= level.fan
    return hops_s


def _tree_hops_s(group: Group) -> float:
    return 2 * sum(
        level.latency_s * (level.fan - 1 if level.name == NODE else ceil(log2(level.fan))) for level in group.levels
    )


def _tree_wires_s(group: Group, num_bytes: float) -> list[float]:
    """``p_i M / (k_i B_i)`` of every level (`tree`)."""
    nodes = {2: 1.0, 3: 1.5}
    passes = [nodes.get(level.fan, 2.0) if level.name != NODE or level.fan == 2 else 2.0 for level in group.levels]
    return _wires_s(group, num_bytes, passes)


def _phases_s(group: Group, num_bytes: float) -> list[float]:
    """``(f_i - 1) / f_i * M / (k_i B_i)`` of every level."""
    return _wires_s(group, num_bytes, [(level.fan - 1) / level.fan for level in group.levels])


def _wires_s(group: Group, num_bytes: float, passes: Sequence[float]) -> list[float]:
    """``passes_i * M / (k_i B_i)`` of every level: its crossings of the message, shared by the members side by side."""
    wires_s, inner = [], 1
    for level, times in zip(group.levels, passes, strict=True):
        wires_s.append(times * num_bytes / inner / _rate(level))
        inner *= level.fan
    return wires_s


def _rate(level: GroupLevel) -> float:
    """Bandwidth of a member to its neighbours at a level, which off its rail is no more than the node forwards."""
    return level.bytes_per_s if stays_on_rail(level) else min(level.bytes_per_s, level.forward_bytes_per_s)


def _busiest_s(group: Group, hop_bytes: float) -> tuple[float, float]:
    """(busiest link, links inside the node) when every hop of the rings carries ``hop_bytes`` in total."""
    passes = [1.0] * len(group.levels)
    if group.levels[0].name == NODE and len(group.levels) > 1:
        passes[0] = (group.levels[0].fan - 1) / group.levels[0].fan
    wires_s = _wires_s(group, hop_bytes, passes)
    return max(wires_s), _inside(group, wires_s)


def _inside(group: Group, wires_s: Sequence[float]) -> float:
    return wires_s[0] if group.levels[0].name == NODE else 0.0
