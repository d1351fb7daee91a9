"""What a member of a group gets of the links at one level of the cluster.

**Bandwidth is per member, while all groups of the axis communicate**, for they do.

- Inside a node: behind a switch a member has its own link. In a full mesh it has its links to the other members,
  ``k - 1`` of them. Over explicit links the tightest cut counts (`hardware_profiles.links`).
- On the network: a member has the share of the cards that its device has, the group's members in one node on average,
  the worst group counting. Where devices of one card are in different groups the card is contended. Above, all
  devices below share a unit's uplinks.
- Where flows are hashed onto equal paths and stay there (single-path routing), the slowest flow counts: the fullest
  path holds ``E`` of them on average, so a flow gets ``1 / E`` of a path. ``E`` is that of Poisson loads, ``sum_m 1 -
  P(load <= m) ** U`` (Raab & Steger 1998, "Balls into bins"; what it does to collectives: Gangidi et al. 2024, "RDMA
  over Ethernet for Distributed AI Training at Meta Scale", section 5). Sprayed packets lose nothing.
- A group with ``k`` members in a unit has ``k`` such shares where it leaves the unit (NCCL runs one ring per network
  card); the collectives account for that by sending ``1 / k`` of the data per member.
- A level made of rails joins equal device indices. What has to change rails is forwarded inside the node (PXN in NCCL;
  Wang et al. 2023, "Rail-only").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from math import exp, lgamma, log

from costmodels.units import format_bandwidth
from hardware_profiles.cluster import NODE, GroupLevel, Links, Machines, Mesh, NetworkLevel, Nic, Node, Switch
from hardware_profiles.links import Cut, Members, tightest_cuts

Patterns = Sequence[tuple[Members, ...]]
"""How the groups of an axis lie in the nodes: for every different node, the devices of each group that it holds."""


def node_level(node: Node, patterns: Patterns, *, fan: int, across: bool) -> GroupLevel:
    """The level inside the node for groups that lie there as one of ``patterns``, ``fan`` members of each;
    ``across``: they go on over the network."""
    fabric, fraction, reduced = node.fabric, node.collective_fraction, 0.0
    if isinstance(fabric, Links):
        rate, exchange, limit = _over_links(fabric, patterns)
    elif isinstance(fabric, Mesh):
        rate = exchange = (fan - 1) * fabric.bytes_per_s * fraction
        each = format_bandwidth(fabric.bytes_per_s)
        limit = f"{fan - 1} of {node.num_devices - 1} links of {each}, {fraction:.0%} sustained"
    else:
        rate = exchange = fabric.bytes_per_s * fraction
        reduced = fabric.bytes_per_s * (fabric.reduce_across_fraction if across else fabric.reduce_fraction)
        limit = f"own link of {format_bandwidth(fabric.bytes_per_s)} to the switch, {fraction:.0%} sustained"
    return GroupLevel(
        name=NODE,
        fan=fan,
        bytes_per_s=rate,
        exchange_bytes_per_s=exchange,
        latency_s=node.latency_s,
        reduce_bytes_per_s=reduced,
        limit=limit,
    )


def _over_links(fabric: Links, patterns: Patterns) -> tuple[float, float, str]:
    """(all-gather rate, all-to-all rate, what limits the first) for the worst of the patterns."""
    cuts = [tightest_cuts(fabric.links, groups) for groups in patterns if any(len(g) > 1 for g in groups)]
    gather: Cut = min((cut for cut, _ in cuts), key=lambda cut: cut.bytes_per_s)
    exchange = min(cut.bytes_per_s for _, cut in cuts)
    return gather.bytes_per_s, exchange, _words(gather)


def _words(cut: Cut) -> str:
    """The cut for the reader: ``links into {0, 1} carry 86 GB/s sustained``."""
    rate = format_bandwidth(cut.capacity_bytes_per_s)
    if cut.relayed:
        a, b = cut.inside
        return f"no link of their own: relayed, link {a}-{b} of {rate} sustained is shared"
    part = ", ".join(str(vertex) for vertex in cut.inside)
    return f"links into {{{part}}} carry {rate} sustained"


def network_level(
    machines: Machines,
    levels: tuple[NetworkLevel, ...],
    patterns: Patterns,
    *,
    fan: int,
    on_rails: bool,
) -> GroupLevel:
    """The last of ``levels`` for groups whose members in a node lie as one of ``patterns``."""
    nic = _nic(machines)
    contended = any(
        len({g for g, members in enumerate(groups) for device in card if device in members}) > 1
        for groups in patterns
        for card in nic.attached
    )
    fraction = nic.contended_fraction if contended else nic.collective_fraction
    shares = _card_shares(nic)
    share = min(sum(shares[d] for d in members) / len(members) for groups in patterns for members in groups)
    limit = f"{_share(share, nic, machines)}, {fraction:.0%} sustained"
    if contended:
        limit += ", cards shared by several groups"
    return _above_node(machines, levels, share, fraction, fan=fan, on_rails=on_rails, limit=limit)


def _above_node(
    machines: Machines,
    levels: tuple[NetworkLevel, ...],
    share: float,
    fraction: float,
    *,
    fan: int,
    on_rails: bool,
    limit: str,
) -> GroupLevel:
    """The last of ``levels`` for devices with ``share`` of their cards, of which ``fraction`` is sustained."""
    rate, more = _uphill(machines, levels, share)
    level = levels[-1]
    rails = any(each.rails for each in (*machines.inside, level))
    return GroupLevel(
        name=level.name,
        fan=fan,
        bytes_per_s=rate * fraction,
        exchange_bytes_per_s=rate * fraction,
        latency_s=_nic(machines).latency_s + max(each.latency_s for each in (*machines.inside, level)),
        forward_bytes_per_s=_forward(machines.node) if rails else 0.0,
        on_rails=on_rails,
        limit=limit + more,
    )


def _uphill(machines: Machines, levels: tuple[NetworkLevel, ...], share: float) -> tuple[float, str]:
    """Bandwidth of one device that has ``share`` of its cards across the last of ``levels``, and what limits it
    there."""
    rate, words = share, ""
    for level in (*machines.inside, *levels):
        uplink, unit = format_bandwidth(level.uplink_bytes_per_s), level.uplink_devices
        if level.uplink_bytes_per_s / unit < rate:
            rate = level.uplink_bytes_per_s / unit
            words = f"; uplinks of {uplink} to {level.name} shared by {unit} devices"
        if level.num_paths is not None:
            flows = unit * level.flows_per_device
            path = level.uplink_bytes_per_s / level.num_paths
            slowest = level.flows_per_device * path / fullest_path(flows, level.num_paths)
            if slowest < rate:
                rate = slowest
                words = (
                    f"; {flows} flows hashed onto {level.num_paths} paths to {level.name} of {format_bandwidth(path)}"
                )
    return rate, words


@lru_cache(maxsize=1024)
def fullest_path(num_flows: int, num_paths: int) -> float:
    """Flows that are expected on the fullest of ``num_paths`` equal paths when ``num_flows`` are hashed onto them.

    ``sum_m 1 - P(load <= m) ** num_paths`` with Poisson loads (module docstring), at least 1; one path carries all.
    """
    if num_paths == 1:
        return float(num_flows)
    mean = num_flows / num_paths
    spread = 12 * (mean**0.5 + 1)
    first = max(0, int(mean - spread))
    loads = range(first, int(mean + spread) + 12)
    probability = [exp(load * log(mean) - mean - lgamma(load + 1)) for load in loads]
    return max(1.0, first + sum(1 - min(at_most, 1.0) ** num_paths for at_most in accumulate(probability)))


def _card_shares(nic: Nic) -> dict[int, float]:
    """Bandwidth of the cards that each device of the node has while all devices communicate."""
    shares: dict[int, float] = {}
    for card in nic.attached:
        for device in card:
            shares[device] = shares.get(device, 0.0) + nic.bytes_per_s / len(card)
    return shares


def _share(share: float, nic: Nic, machines: Machines) -> str:
    each = format_bandwidth(nic.bytes_per_s)
    return f"{format_bandwidth(share)} of {len(nic.attached)} cards of {each} for {machines.node.num_devices} devices"


def _forward(node: Node) -> float:
    """Rate per device at which a node passes on what has to change rails: one device to another."""
    fabric = node.fabric
    if isinstance(fabric, Switch):
        return fabric.bytes_per_s * node.send_fraction
    if isinstance(fabric, Mesh):
        return max(1, node.num_devices - 1) * fabric.bytes_per_s * node.send_fraction
    cuts = tightest_cuts(fabric.links, (tuple(range(node.num_devices)),))
    return cuts[1].bytes_per_s


def send_in_node(node: Node, pairs: tuple[Members, ...]) -> GroupLevel:
    """One device of each pair to the other, all pairs (disjoint) at once."""
    fabric, fraction = node.fabric, node.send_fraction
    if isinstance(fabric, Links):
        links = tuple(replace(link, collective_fraction=link.send_fraction) for link in fabric.links)
        worst = tightest_cuts(links, pairs)[0]
        rate, limit = worst.bytes_per_s, _words(worst)
    else:
        rate = fabric.bytes_per_s * fraction
        limit = f"one link of {format_bandwidth(fabric.bytes_per_s)}, {fraction:.0%} sustained"
    return GroupLevel(
        name=NODE, fan=2, bytes_per_s=rate, exchange_bytes_per_s=rate, latency_s=node.latency_s, limit=limit
    )


def send_on_network(machines: Machines, levels: tuple[NetworkLevel, ...], *, on_rails: bool) -> GroupLevel:
    """Every device of a node to one of another, all at once."""
    nic = _nic(machines)
    share, fraction = min(_card_shares(nic).values()), nic.send_fraction
    limit = f"{_share(share, nic, machines)}, {fraction:.0%} sustained"
    return _above_node(machines, levels, share, fraction, fan=2, on_rails=on_rails, limit=limit)


def _nic(machines: Machines) -> Nic:
    assert machines.nic is not None, f"{machines.name} has a network and no cards"
    return machines.nic
