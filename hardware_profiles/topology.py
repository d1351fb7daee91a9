"""Which links the process group of one mesh axis has: ranks fill the innermost level first.

An axis of ``size`` members that are ``stride`` ranks apart splits the ranks into groups ``start + stride * i``. At a
level whose unit (card, node, ...) holds ``D`` devices, ``k(D)`` members of a group lie in one unit. The level's *fan*
is the number of smaller units that meet there, ``k(D) / k(D of the level inside)``; the fans multiply to ``size``.
With size 16, stride 4 and nodes of 8: two members per node, so fan 2 in the node and fan 8 on the network.

**When the group does not divide evenly** (size 8, stride 3, nodes of 8: they hold 3, 3 and 2 members), ``k(D)`` is the
largest divisor of ``size`` that is a multiple of the inner ``k`` and not above the members of the emptiest unit
of any group of the axis: collectives wait for the worst-placed member, so the picture errs to the slow side.

**Bandwidth is per member.** A level's figure is per device while all devices communicate, and all other groups of the
axis do communicate, so a member has its own device's share and no more. A group with ``k`` members in a unit
has ``k`` such shares where it leaves the unit (NCCL runs one ring per network card); the collectives account for
that by sending ``1/k`` of the data per member. At a full mesh a member can use only its links to the
``fan - 1`` units it talks to, out of all that the level has.
"""

from __future__ import annotations

from functools import lru_cache

from hardware_profiles.cluster import Cluster, Group, GroupLevel, Level


def group(cluster: Cluster, *, size: int, stride: int) -> Group:
    """The process group of a mesh axis with ``size`` members, ``stride`` ranks apart, as the collectives see it.

    ``stride`` is the product of the sizes of the axes inside this one. ``size * stride`` may not exceed the cluster
    (an invariant of mesh factorisation, asserted). Levels with fan 1 are left out; size 1 gives no level at all.
    """
    total = cluster.num_devices
    assert size >= 1 and stride >= 1 and size * stride <= total, f"axis {size} x stride {stride} in {total} devices"
    levels = []
    inner_members, inner_devices = 1, 1
    for level in cluster.levels:
        outermost = level.num_devices == total
        members = size if outermost else _members_per_unit(size, stride, level.num_devices, total, inner_members)
        if members > inner_members:
            levels.append(_group_level(level, fan=members // inner_members, inner_devices=inner_devices))
        inner_members, inner_devices = members, level.num_devices
    return Group(size=size, levels=tuple(levels))


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
    inner_devices = 1
    for level in cluster.levels:
        if first // level.num_devices == last // level.num_devices:
            break
        inner_devices = level.num_devices
    return Group(size=2, levels=(_group_level(level, fan=2, inner_devices=inner_devices),))


def _group_level(level: Level, *, fan: int, inner_devices: int) -> GroupLevel:
    """Sustained figures of one level for a group with ``fan`` sub-groups there."""
    share = 1.0
    if level.full_mesh:
        share = (fan - 1) / (level.num_devices // inner_devices - 1)
    return GroupLevel(
        fan=fan,
        bytes_per_s=level.bytes_per_s * level.sustained_fraction * share,
        latency_s=level.latency_s,
        switch_reduce_bytes_per_s=level.bytes_per_s * level.switch_reduce_fraction,
    )


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
