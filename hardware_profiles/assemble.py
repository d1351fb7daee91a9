"""Checked profiles -> `Cluster`: as many nodes as are asked for, and the levels that join them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from math import gcd, inf
from typing import Any

from costmodels.units import GB, MICRO
from hardware_profiles.cluster import GROUP, Cluster, Device, Efficiency, Library, Machines, NetworkLevel
from hardware_profiles.errors import ProfileError
from hardware_profiles.network_sections import NetworkSection
from hardware_profiles.schema import MixedProfile, Profile


def uniform_cluster(hardware: str, profile: Profile, nodes: int, per_node: int, *, name: str) -> Cluster:
    """``nodes`` machines, the first ``per_node`` devices of each; a `ProfileError` names ``hardware``."""
    if nodes > 1 and not profile.network:
        raise ProfileError(
            f"{hardware}: {nodes} nodes, but profile {profile.name} has no [nic] and [[network]] to join them"
        )
    machines = _machines(profile, profile.name, nodes, per_node, networked=nodes > 1)
    return Cluster(
        name=f"{name}:{nodes}x{per_node}",
        device=machines.device,
        machines=(machines,),
        network=_own_levels(hardware, profile, nodes, per_node) if nodes > 1 else (),
        library=profile.collectives.build(),
        evidence=profile.evidence,
        fingerprint=_fingerprint(profile.model_dump(mode="json"), nodes, per_node),
    )


def mixed_cluster(
    hardware: str, mixed: MixedProfile, profiles: list[Profile], shape: str | None, num_devices: int | None
) -> Cluster:
    """The whole of a mixed cluster, ``profiles`` being its groups'; a shape or number of devices must be its own."""
    per_node = profiles[0].node.num_devices
    if any(profile.node.num_devices != per_node for profile in profiles):
        sizes = ", ".join(f"{s.name} {p.node.num_devices}" for s, p in zip(mixed.groups, profiles, strict=True))
        raise ProfileError(
            f"{hardware}: a mixed cluster is planned as a whole only where all nodes have as many devices ({sizes}); "
            f"plan one group, e.g. {hardware}@{mixed.groups[0].name}"
        )
    nodes = sum(section.num_nodes for section in mixed.groups)
    total = nodes * per_node
    if shape not in (None, f"{nodes}x{per_node}") or num_devices not in (None, total):
        asked = shape or f"{num_devices} devices"
        raise ProfileError(
            f"{hardware}: {asked} asked for, but the file describes {nodes}x{per_node}; "
            f"name a group to take a part, e.g. {mixed.name}@{mixed.groups[0].name}"
        )
    machines, first = [], 0
    for section, profile in zip(mixed.groups, profiles, strict=True):
        part = _machines(profile, section.name, section.num_nodes, per_node, networked=True)
        inside = _own_levels(hardware, profile, section.num_nodes, per_node) if section.num_nodes > 1 else ()
        machines.append(replace(part, first_device=first, inside=inside))
        first += part.num_devices
    content = {
        "mixed": mixed.model_dump(mode="json", exclude={"groups": {"__all__": {"hardware"}}}),
        "groups": [profile.model_dump(mode="json") for profile in profiles],
    }
    return Cluster(
        name=f"{mixed.name}:{nodes}x{per_node}",
        device=_weakest(hardware, [part.device for part in machines]),
        machines=tuple(machines),
        network=_mixed_levels(hardware, mixed, profiles, per_node),
        library=_slowest_library(hardware, [profile.collectives.build() for profile in profiles]),
        evidence="derived",
        fingerprint=_fingerprint(content, nodes, per_node),
    )


def _machines(profile: Profile, name: str, nodes: int, per_node: int, *, networked: bool) -> Machines:
    nic = profile.nic.build(profile.node.num_devices, per_node) if profile.nic is not None and networked else None
    return Machines(
        name=name,
        device=profile.device.build(profile.name),
        node=profile.node.build(per_node),
        nic=nic,
        first_device=0,
        num_devices=nodes * per_node,
    )


def _own_levels(hardware: str, profile: Profile, nodes: int, per_node: int) -> tuple[NetworkLevel, ...]:
    return _levels(hardware, profile.name, profile.network, nodes, per_node, joined=1, unit_bytes_per_s=_cards(profile))


def _cards(profile: Profile) -> float:
    """Bandwidth of all cards of a node; one that is used in part has them all."""
    assert profile.nic is not None, f"{profile.name} has no cards"
    return profile.nic.count * profile.nic.gb_per_s.value * GB


def _levels(
    hardware: str,
    name: str,
    sections: Sequence[NetworkSection],
    nodes: int,
    per_node: int,
    *,
    joined: int,
    unit_bytes_per_s: float,
) -> tuple[NetworkLevel, ...]:
    """Levels that join ``nodes``, those that would join nothing dropped.

    ``joined`` nodes are joined already, in units that bring ``unit_bytes_per_s`` to the first level; a level passes
    on what its uplinks carry.
    """
    levels: list[NetworkLevel] = []
    for section in sections:
        if section.uplink_gb_per_s is not None:
            unit_bytes_per_s = section.uplink_gb_per_s.value * GB
        elif section.oversubscription is not None:
            unit_bytes_per_s /= section.oversubscription.value
        size = min(section.num_nodes or nodes, nodes)
        levels.append(
            NetworkLevel(
                name=section.name,
                num_devices=size * per_node,
                latency_s=section.latency_us.value * MICRO,
                uplink_bytes_per_s=unit_bytes_per_s,
                uplink_devices=joined * per_node,
                rails=section.rails,
                num_paths=section.num_paths,
                flows_per_device=section.flows_per_device or 1,
            )
        )
        if size == nodes:
            return tuple(levels)
        unit_bytes_per_s *= size / joined
        joined = size
    raise ProfileError(
        f"{hardware}: {nodes} nodes do not fit: the outermost level {sections[-1].name!r} of profile {name} joins "
        f"{joined}"
    )


def _mixed_levels(
    hardware: str, mixed: MixedProfile, profiles: list[Profile], per_node: int
) -> tuple[NetworkLevel, ...]:
    """One level over the nodes of the groups' common divisor, inside of which `Machines.inside` counts; then the
    file's.

    A unit that lies in one group for certain has as many nodes as divide every group, so an axis is never taken to be
    inside when it is not. The first level of the file is entered by groups, of which the one with least per device
    counts.
    """
    counts = [section.num_nodes for section in mixed.groups]
    unit, largest = gcd(*counts), max(counts)
    levels: list[NetworkLevel] = []
    if unit > 1:
        levels.append(
            NetworkLevel(
                name=GROUP,
                num_devices=unit * per_node,
                latency_s=0.0,
                uplink_bytes_per_s=inf,
                uplink_devices=per_node,
            )
        )
    cards = min(_cards(profile) for profile in profiles) * largest
    outer = _levels(hardware, mixed.name, mixed.network, sum(counts), per_node, joined=largest, unit_bytes_per_s=cards)
    return (*levels, *outer)


def _weakest(hardware: str, devices: list[Device]) -> Device:
    """The weakest figures of all devices, which an even split can count on, with the tiles of the slowest."""
    dtypes = [d for d, _ in devices[0].peak_flop_per_s if all(d in dict(other.peak_flop_per_s) for other in devices)]
    if not dtypes:
        raise ProfileError(f"{hardware}: no dtype has a peak on all of {', '.join(d.name for d in devices)}")
    common = "bfloat16" if "bfloat16" in dtypes else dtypes[0]
    slowest = min(devices, key=lambda device: device.peak(common) * device.efficiency.gemm)
    efficiency = {
        name: min(getattr(device.efficiency, name) for device in devices)
        for name in slowest.efficiency.__dataclass_fields__
    }
    return Device(
        name=f"weakest of {', '.join(sorted({device.name for device in devices}))}",
        peak_flop_per_s=tuple((dtype, min(device.peak(dtype) for device in devices)) for dtype in dtypes),
        memory_bytes=min(device.memory_bytes for device in devices),
        memory_bytes_per_s=min(device.memory_bytes_per_s for device in devices),
        num_compute_units=slowest.num_compute_units,
        gemm_tile=slowest.gemm_tile,
        efficiency=Efficiency(**efficiency),
        launch_overhead_s=max(device.launch_overhead_s for device in devices),
        call_s=max((device.call_s for device in devices if device.call_s is not None), default=None),
    )


def _slowest_library(hardware: str, libraries: list[Library]) -> Library:
    """What all libraries know, at the rates of the slowest."""
    protocols = frozenset.intersection(*(library.protocols for library in libraries))
    if not protocols & {"simple", "hockney"}:
        known = "; ".join(f"{library.name}: {', '.join(sorted(library.protocols))}" for library in libraries)
        raise ProfileError(f"{hardware}: the groups' libraries have no protocol for large messages in common ({known})")
    return Library(
        name="+".join(sorted({library.name for library in libraries})),
        algorithms=frozenset.intersection(*(library.algorithms for library in libraries)),
        protocols=protocols,
        launch_s=max(library.launch_s for library in libraries),
        copy_bytes_per_s=min(library.copy_bytes_per_s for library in libraries),
        compute_slowdown=max(library.compute_slowdown for library in libraries),
    )


def _fingerprint(content: Any, nodes: int, per_node: int) -> str:
    """SHA-256 over the profile's values (key order, comments and spelling of numbers do not count) and the shape."""
    picture = {"profile": content, "nodes": nodes, "devices_per_node": per_node}
    return hashlib.sha256(json.dumps(picture, sort_keys=True).encode()).hexdigest()
