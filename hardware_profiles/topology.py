"""Which links the process group of one mesh axis has: ranks fill the innermost level first.

An axis of ``size`` members that are ``stride`` ranks apart splits the ranks into groups ``start + stride * i``. At a
level whose unit (node, leaf, ...) holds ``D`` devices, ``k(D)`` members of a group lie in one unit. The level's *fan*
is the number of smaller units that meet there, ``k(D) / k(D of the level inside)``; the fans multiply to ``size``.
With size 16, stride 4 and nodes of 8: two members per node, so fan 2 in the node and fan 8 on the network.

**When the group does not divide evenly** (size 8, stride 3, nodes of 8: they hold 3, 3 and 2 members), ``k(D)`` is the
largest divisor of ``size`` that is a multiple of the inner ``k`` and not above the members of the emptiest unit
of any group of the axis: collectives wait for the worst-placed member, so the picture errs to the slow side.

What a member gets at each level is in `hardware_profiles.rates`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import lcm

from hardware_profiles.cluster import Cluster, Group, GroupLevel
from hardware_profiles.links import Members
from hardware_profiles.rates import network_level, node_level, send_in_node, send_on_network


@lru_cache(maxsize=4096)
def group(cluster: Cluster, *, size: int, stride: int) -> Group:
    """The process group of a mesh axis with ``size`` members, ``stride`` ranks apart, as the collectives see it.

    ``stride`` is the product of the sizes of the axes inside this one. ``size * stride`` may not exceed the cluster
    (an invariant of mesh factorisation, asserted). Levels with fan 1 are left out; size 1 gives no level at all.
    """
    total = cluster.num_devices
    assert size >= 1 and stride >= 1 and size * stride <= total, f"axis {size} x stride {stride} in {total} devices"
    per_node = cluster.devices_per_node
    levels: list[GroupLevel] = []
    members = size if per_node == total else _members_per_unit(size, stride, per_node, total, 1)
    patterns = _patterns(size, stride, per_node, total)
    if members > 1:
        levels.append(
            _slowest(
                [
                    node_level(machines.node, patterns, fan=members, across=members < size)
                    for machines in cluster.machines
                ]
            )
        )
    inner_members = members
    for i, level in enumerate(cluster.network):
        outermost = level.num_devices == total
        members = size if outermost else _members_per_unit(size, stride, level.num_devices, total, inner_members)
        if members > inner_members:
            on_rails = stride % per_node == 0 or _repeats(size, stride, per_node)
            levels.append(
                _slowest(
                    [
                        network_level(
                            machines,
                            cluster.network[: i + 1],
                            patterns,
                            fan=members // inner_members,
                            on_rails=on_rails,
                        )
                        for machines in cluster.machines
                    ]
                )
            )
        inner_members = members
    return Group(size=size, levels=tuple(levels), library=cluster.library)


@lru_cache(maxsize=4096)
def boundary(cluster: Cluster, *, stride: int, index: int | None = None) -> Group:
    """The link between neighbours ``index`` and ``index + 1`` of the outermost axis: two ranks ``stride`` apart.

    ``stride`` is the number of devices of one stage; stage ``index`` holds ranks ``index * stride`` and up. The level
    is the innermost that joins every pair of the two stages, so one pair that leaves the node puts the boundary on
    the network. Without ``index``: the outermost level that any boundary of the axis crosses. The cluster must hold
    two stages (asserted).
    """
    num_stages = cluster.num_devices // stride
    assert stride >= 1 and num_stages >= 2, f"stages of {stride} in {cluster.num_devices} devices"
    assert index is None or 0 <= index < num_stages - 1, f"boundary {index} of {num_stages} stages"
    first, last = (0, num_stages * stride - 1) if index is None else (index * stride, (index + 2) * stride - 1)
    per_node = cluster.devices_per_node
    if index is None and cluster.num_devices == per_node:
        every = [boundary(cluster, stride=stride, index=i) for i in range(num_stages - 1)]
        return min(every, key=lambda link: link.levels[0].bytes_per_s)
    involved = [m for m in cluster.machines if m.first_device <= last and first < m.first_device + m.num_devices]
    if first // per_node == last // per_node:
        start = first % per_node
        pairs = tuple((start + i, start + i + stride) for i in range(stride))
        level = send_in_node(involved[0].node, pairs)
    else:
        crossed = next(
            i for i, level in enumerate(cluster.network) if first // level.num_devices == last // level.num_devices
        )
        levels = cluster.network[: crossed + 1]
        level = _slowest([send_on_network(m, levels, on_rails=stride % per_node == 0) for m in involved])
    return Group(size=2, levels=(level,), library=cluster.library)


def _slowest(levels: list[GroupLevel]) -> GroupLevel:
    """The worst figures of the same level in every kind of machine: a collective waits for its slowest member."""
    slowest = min(levels, key=lambda level: level.bytes_per_s)
    return replace(
        slowest,
        exchange_bytes_per_s=min(level.exchange_bytes_per_s for level in levels),
        latency_s=max(level.latency_s for level in levels),
        reduce_bytes_per_s=min(level.reduce_bytes_per_s for level in levels),
        forward_bytes_per_s=min(
            (level.forward_bytes_per_s for level in levels if level.forward_bytes_per_s), default=0.0
        ),
    )


def _repeats(size: int, stride: int, unit: int) -> bool:
    """Every node holds the groups of the axis in the same way."""
    return unit % stride == 0 and (size * stride) % unit == 0


@lru_cache(maxsize=4096)
def _patterns(size: int, stride: int, unit: int, total: int) -> tuple[tuple[Members, ...], ...]:
    """How the groups of the axis lie in a node: for every different node, the devices of each group that it holds."""
    found: dict[tuple[Members, ...], None] = {}
    period = min(total, lcm(unit, size * stride))
    for start in range(0, period, unit):
        groups: dict[tuple[int, int], list[int]] = {}
        for device in range(unit):
            block, within = divmod(start + device, size * stride)
            groups.setdefault((block, within % stride), []).append(device)
        found[tuple(sorted(tuple(members) for members in groups.values()))] = None
        if stride % unit == 0 or _repeats(size, stride, unit):
            break
    return tuple(found)


@lru_cache(maxsize=4096)
def _members_per_unit(size: int, stride: int, unit: int, total: int, inner_members: int) -> int:
    """``k(unit)`` by the rule of the module docstring."""
    if stride % unit == 0:
        return inner_members
    per_unit = unit // stride
    even = unit % stride == 0 and (size % per_unit == 0 or per_unit % size == 0)
    if even and min(size, per_unit) % inner_members == 0:
        return min(size, per_unit)
    most = max(min(_fill(size, stride, unit, total)), inner_members)
    return max(k for k in range(inner_members, most + 1, inner_members) if size % k == 0)


def _fill(size: int, stride: int, unit: int, total: int) -> list[int]:
    """Members per touched unit, over all groups of the axis (shape: one entry per group and unit)."""
    fill: list[int] = []
    for block in range(0, total - size * stride + 1, size * stride):
        for start in range(block, block + stride):
            counts: dict[int, int] = {}
            for rank in range(start, start + size * stride, stride):
                counts[rank // unit] = counts.get(rank // unit, 0) + 1
            fill.extend(counts.values())
    return fill
