"""Checked profiles -> `Cluster`: as many nodes as are asked for, and the levels that join them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

from costmodels.units import GB, MICRO
from hardware_profiles.cluster import Cluster, Device, Efficiency, Library, Machines, NetworkLevel
from hardware_profiles.errors import ProfileError
from hardware_profiles.network_sections import NetworkSection
from hardware_profiles.schema import MixedProfile, Profile


def uniform_cluster(hardware: str, profile: Profile, nodes: int, per_node: int, *, name: str) -> Cluster:
    """``nodes`` machines, the first ``per_node`` devices of each; a `ProfileError` names ``hardware``."""
    if nodes > 1 and not profile.network:
        raise ProfileError(
            f"{hardware}: {nodes} nodes, but profile {profile.name} has no [nic] and [[network]] to join them"
        )
    machines = _machines(profile, profile.name, nodes, per_node, first_device=0)
    return Cluster(
        name=f"{name}:{nodes}x{per_node}",
        device=machines.device,
        machines=(machines,),
        network=_levels(hardware, profile.name, profile.network, nodes, per_node) if nodes > 1 else (),
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
        machines.append(_machines(profile, section.name, section.num_nodes, per_node, first_device=first))
        first += machines[-1].num_devices
    content = {
        "mixed": mixed.model_dump(mode="json"),
        "groups": [profile.model_dump(mode="json") for profile in profiles],
    }
    return Cluster(
        name=f"{mixed.name}:{nodes}x{per_node}",
        device=_weakest([part.device for part in machines]),
        machines=tuple(machines),
        network=_mixed_levels(hardware, mixed, profiles, per_node),
        library=_slowest_library([profile.collectives.build() for profile in profiles]),
        evidence="derived",
        fingerprint=_fingerprint(content, nodes, per_node),
    )


def _machines(profile: Profile, name: str, nodes: int, per_node: int, *, first_device: int) -> Machines:
    nic = profile.nic.build(profile.node.num_devices, per_node) if profile.nic is not None and nodes > 1 else None
    return Machines(
        name=name,
        device=profile.device.build(profile.name),
        node=profile.node.build(per_node),
        nic=nic,
        first_device=first_device,
        num_devices=nodes * per_node,
    )


def _levels(
    hardware: str, name: str, sections: Sequence[NetworkSection], nodes: int, per_node: int, *, below: int = 1
) -> tuple[NetworkLevel, ...]:
    """Levels that join ``nodes``, those that would join nothing dropped; ``below`` nodes are joined already."""
    levels: list[NetworkLevel] = []
    joined = below
    for section in sections:
        size = min(section.num_nodes or nodes, nodes)
        if size % joined:
            raise ProfileError(
                f"{hardware}: level {section.name!r} with {size} nodes must be a multiple of the level inside it "
                f"({joined})"
            )
        uplink = section.uplink_gb_per_s
        levels.append(
            NetworkLevel(
                name=section.name,
                num_devices=size * per_node,
                latency_s=section.latency_us.value * MICRO,
                oversubscription=1.0 if section.oversubscription is None else section.oversubscription.value,
                uplink_bytes_per_s=None if uplink is None else uplink.value * GB,
                uplink_devices=joined * per_node,
                rails=section.rails,
                num_paths=section.num_paths,
                flows_per_device=section.flows_per_device or 1,
            )
        )
        joined = size
        if size == nodes:
            return tuple(levels)
    raise ProfileError(
        f"{hardware}: {nodes} nodes do not fit: the outermost level {sections[-1].name!r} of profile {name} joins "
        f"{joined}"
    )


def _mixed_levels(
    hardware: str, mixed: MixedProfile, profiles: list[Profile], per_node: int
) -> tuple[NetworkLevel, ...]:
    """Inside of the groups one level, the worst of theirs, over the nodes of their common divisor; then the file's.

    A unit that lies in one group for certain has as many nodes as divide every group, so an axis is never taken to
    be inside when it is not.
    """
    counts = [section.num_nodes for section in mixed.groups]
    inside = gcd(*counts)
    levels: list[NetworkLevel] = []
    if inside > 1:
        own = [
            _levels(hardware, profile.name, profile.network, count, per_node)
            for profile, count in zip(profiles, counts, strict=True)
        ]
        levels.append(
            NetworkLevel(
                name="group",
                num_devices=inside * per_node,
                latency_s=max(level.latency_s for part in own for level in part),
                oversubscription=max(prod(level.oversubscription for level in part) for part in own),
                uplink_devices=per_node,
                rails=any(level.rails for part in own for level in part),
            )
        )
    outer = _levels(hardware, mixed.name, mixed.network, sum(counts), per_node, below=inside)
    shared = max(counts) * per_node
    return (*levels, replace(outer[0], uplink_devices=shared), *outer[1:])


def _weakest(devices: list[Device]) -> Device:
    """The weakest figure of every kind: what an even split over all of them can count on."""
    slowest = min(devices, key=lambda device: device.peak_flop_per_s[-1][1] * device.efficiency.gemm)
    dtypes = [dtype for dtype, _ in slowest.peak_flop_per_s if all(dtype in dict(d.peak_flop_per_s) for d in devices)]
    efficiency = {
        name: min(getattr(device.efficiency, name) for device in devices)
        for name in slowest.efficiency.__dataclass_fields__
    }
    return replace(
        slowest,
        name=f"weakest of {', '.join(sorted({device.name for device in devices}))}",
        peak_flop_per_s=tuple((dtype, min(device.peak(dtype) for device in devices)) for dtype in dtypes),
        memory_bytes=min(device.memory_bytes for device in devices),
        memory_bytes_per_s=min(device.memory_bytes_per_s for device in devices),
        efficiency=Efficiency(**efficiency),
        launch_overhead_s=max(device.launch_overhead_s for device in devices),
    )


def _slowest_library(libraries: list[Library]) -> Library:
    """What all libraries know, at the rates of the slowest."""
    return Library(
        name="+".join(sorted({library.name for library in libraries})),
        algorithms=frozenset.intersection(*(library.algorithms for library in libraries)),
        protocols=frozenset.intersection(*(library.protocols for library in libraries)) or libraries[0].protocols,
        launch_s=max(library.launch_s for library in libraries),
        copy_bytes_per_s=min(library.copy_bytes_per_s for library in libraries),
        compute_slowdown=max(library.compute_slowdown for library in libraries),
    )


def _fingerprint(content: Any, nodes: int, per_node: int) -> str:
    """SHA-256 over the profile's values (key order, comments and spelling of numbers do not count) and the shape."""
    picture = {"profile": content, "nodes": nodes, "devices_per_node": per_node}
    return hashlib.sha256(json.dumps(picture, sort_keys=True).encode()).hexdigest()
