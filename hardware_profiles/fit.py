"""Measurements -> profile: `fit`.

With a base, a packaged profile, structure and datasheet rates are the base's and the measurements give the fractions
of them that were reached. Without one, the rates written are those that were reached, and the fractions are 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from costmodels.units import GB, GIB
from hardware_profiles.assemble import uniform_cluster
from hardware_profiles.device_section import EfficiencySection
from hardware_profiles.fitting.device import fit_device
from hardware_profiles.fitting.links import fit_links
from hardware_profiles.fitting.robust import ClassError, typical
from hardware_profiles.fitting.sections import TILES, FitError, Sections
from hardware_profiles.load import load_profile
from hardware_profiles.samples import Machine, Sample
from hardware_profiles.schema import Profile

_UNEVEN = 1.25
"""Ratio of rates from which on links or cards that should be equal are reported."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A profile with how well it describes the samples."""

    profile: Profile
    errors: tuple[ClassError, ...]
    warnings: tuple[str, ...]


def fit(machine: Machine, samples: Sequence[Sample], *, name: str, base: str | None = None) -> Fitted:
    """The profile ``name`` of ``machine`` from its samples.

    Raises `FitError` where figures are missing that neither samples nor base give, or where the base's rates are
    exceeded, and the errors of `load_profile` for ``base``.
    """
    known = None if base is None else load_profile(base)
    if known is not None and not isinstance(known, Profile):
        raise FitError(f"base {base}: is a mixed cluster; give the profile of one kind of machine")
    if known is not None and known.collectives.library != machine.library:
        raise FitError(
            f"base {base}: is for {known.collectives.library}, measured was {machine.library} on "
            f"{', '.join(machine.devices)}; give another base or none"
        )
    nodes, per_node = machine.num_nodes, machine.devices_per_node
    start = known or _skeleton(machine)
    if per_node > start.node.num_devices:
        raise FitError(
            f"base {base}: has {start.node.num_devices} devices a node, {per_node} were measured; give another base"
        )
    tile = start.device.gemm_tile
    device = fit_device(samples, num_compute_units=start.device.num_compute_units.value, gemm_tile=(tile[0], tile[1]))
    cluster = uniform_cluster(f"base {base}", start, nodes, per_node, name=name)
    copy_limit = max(device.memory_bytes_per_s.values(), default=start.device.memory_gb_per_s.value * GB)
    if known is not None:
        copy_limit = min(copy_limit, known.device.memory_gb_per_s.value * GB)
    links = fit_links(samples, cluster, known=known is not None, copy_limit=copy_limit)
    writer = Sections(machine=machine, device=device, links=links, base=known, samples=samples)
    sections = {**writer.build(), "name": name}
    try:
        profile = Profile.model_validate(sections)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, f['loc']))} = {f['input']!r}: {f['msg']}" for f in error.errors())
        raise FitError(f"no profile: the measurements give figures that no machine has: {'; '.join(faults)}") from None
    return Fitted(
        profile=profile,
        errors=(*device.errors, *(links.errors if links else ())),
        warnings=(*writer.warnings, *_uneven(samples, per_node)),
    )


def _skeleton(machine: Machine) -> Profile:
    """The structure of a machine of which nothing is known but its size; every rate 1 GB/s, every fraction 1."""
    per_node = machine.devices_per_node
    return Profile.model_validate(
        {
            "name": "skeleton",
            "device": {
                "peak_fp32_tflop_per_s": 1.0,
                "memory_gib": machine.memory_bytes / GIB,
                "memory_gb_per_s": 1e5,
                "num_compute_units": machine.num_compute_units,
                "gemm_tile": TILES[machine.library],
                "launch_overhead_us": 1.0,
                "efficiency": dict.fromkeys(EfficiencySection.model_fields, 1.0),
            },
            "collectives": {
                "library": machine.library,
                "algorithms": ["ring"],
                "protocols": ["simple"],
                "launch_us": 1.0,
                "copy_gb_per_s": 1.0,
                "compute_slowdown": 1.0,
            },
            "node": {
                "num_devices": per_node,
                "fabric": "switch",
                "gb_per_s": 1.0,
                "latency_us": 1.0,
                "collective_fraction": 1.0,
                "send_fraction": 1.0,
            },
            "nic": {
                "count": per_node,
                "gb_per_s": 1.0,
                "latency_us": 1.0,
                "collective_fraction": 1.0,
                "send_fraction": 1.0,
            },
            "network": [{"name": "network", "latency_us": 0.0, "routing": "sprayed"}],
        }
    )


def _uneven(samples: Sequence[Sample], per_node: int) -> list[str]:
    """Warnings of single pairs of a node, and of single cards, that are much slower than the best."""
    pairs = [sample for sample in samples if sample.kind == "send" and sample.ranks and sample.ranks[1] < per_node]
    warnings = []
    if pairs:
        best = min(min(sample.seconds) for sample in pairs)
        slow = [f"{a}-{b}" for (a, b), s in ((p.ranks, min(p.seconds)) for p in pairs) if s > _UNEVEN * best]
        if slow:
            warnings.append(
                f"pairs of devices {', '.join(slow)} send more than 25 % slower than the fastest pair: the node is no "
                "switch of equal links; give a base whose [node] lists its links"
            )
    cards: dict[int, list[float]] = {}
    for kind in {sample.kind for sample in samples}:
        alone = [s for s in samples if s.kind == kind and s.ranks and s.stride == per_node and s.size > 1]
        if alone and kind != "send":
            largest = max(sample.num_bytes for sample in alone)
            times = {s.ranks[0]: typical(s.seconds) for s in alone if s.num_bytes == largest}
            for index, seconds in times.items():
                cards.setdefault(index, []).append(seconds / min(times.values()))
    slow_cards = [str(index) for index, ratios in sorted(cards.items()) if sum(ratios) / len(ratios) > _UNEVEN]
    if slow_cards:
        warnings.append(
            f"devices with index {', '.join(slow_cards)} of their nodes reach other nodes more than 25 % slower than "
            "the fastest: a slow or misplaced network card"
        )
    return warnings
