"""Figures of the links and of the communication library from timed collectives.

The model is the one that prices plans, `costmodels.communication` over `hardware_profiles.topology.group`: its figures
are moved until its logarithmic errors over all samples are least. Collectives give launch, copy, hops and rates; sends
only the rate of sends, with the rest kept. Among the algorithms and protocols that the library may have, those that
explain the samples best are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from costmodels import communication
from costmodels.units import MICRO
from hardware_profiles import topology
from hardware_profiles.cluster import Cluster, Group, Links, Nic, Node
from hardware_profiles.fitting.robust import ClassError, Parameter, Solution, solve, typical
from hardware_profiles.samples import COLLECTIVES, Sample

_BEYOND = 10.0
"""A rate is at most as many times what any sample reached: messages that are too small to tell do not tell more."""

_FORMULAS: dict[str, Callable[[Group, float], float]] = {
    "all_reduce": communication.all_reduce_s,
    "all_gather": communication.all_gather_s,
    "reduce_scatter": communication.reduce_scatter_s,
    "all_to_all": communication.all_to_all_s,
    "broadcast": communication.broadcast_s,
}

_SPREAD = 16
"""Largest message over the smallest from which on a fit is tried."""

CHOICES: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]] = {
    "nccl": ((("ring", "tree"), ("ring",)), (("ll", "simple"), ("simple",), ("hockney",))),
    "rccl": ((("ring", "tree"), ("ring",)), (("ll", "simple"), ("simple",), ("hockney",))),
    "hccl": (
        (("ring", "halving-doubling"), ("ring", "halving-doubling", "hierarchical"), ("ring",)),
        (("hockney",), ("simple",)),
    ),
    "gloo": ((("ring",), ("ring", "halving-doubling")), (("hockney",), ("simple",))),
}
"""(algorithms, protocols) that a library may have, the likelier first."""


@dataclass(frozen=True, kw_only=True)
class LinksFit:
    """What the links reach, in SI units."""

    cluster: Cluster
    """The cluster with the fitted figures in place: what predicts the samples."""
    algorithms: tuple[str, ...]
    protocols: tuple[str, ...]
    launch_s: float
    copy_bytes_per_s: float
    node: Level | None
    nic: Level | None
    errors: tuple[ClassError, ...]


@dataclass(frozen=True, kw_only=True)
class Level:
    """Figures of the links inside the node, or of the cards; fractions of the bandwidth that the cluster began with."""

    latency_s: float
    fraction: float
    """Of collectives, all groups at once."""
    alone_fraction: float | None
    """Of collectives while one device of a node communicates."""
    send_fraction: float


def predict_s(cluster: Cluster, sample: Sample) -> float:
    """Seconds of the sample's collective on the cluster, all groups of its axis at once."""
    if sample.kind == "send":
        return communication.send_recv_s(topology.boundary(cluster, stride=sample.stride, index=0), sample.num_bytes)
    group = topology.group(cluster, size=sample.size, stride=sample.stride)
    return _FORMULAS[sample.kind](group, sample.num_bytes)


def usable(samples: Sequence[Sample], cluster: Cluster) -> list[Sample]:
    """Samples of collectives whose groups the model has: not those of single pairs inside a node."""
    return [
        sample
        for sample in samples
        if sample.kind in COLLECTIVES
        and sample.size * sample.stride <= cluster.num_devices
        and (not sample.ranks or sample.stride % cluster.devices_per_node == 0)
    ]


def fit_links(samples: Sequence[Sample], cluster: Cluster, *, known: bool, copy_limit: float) -> LinksFit | None:
    """The figures of ``cluster`` that explain the samples; None without samples of collectives.

    ``known``: the cluster's algorithms and protocols are right; else they are chosen from `CHOICES`. ``copy_limit`` is
    the memory's bandwidth in bytes/s, which no copy exceeds.
    """
    found = usable(samples, cluster)
    levels = [level for level in (_inside, _across) if _tells(level(found, cluster))]
    told = [sample for level in levels for sample in level(found, cluster)]
    together = [sample for sample in found if sample in told]
    if not together:
        return None
    library = cluster.library
    pairs = [(tuple(sorted(library.algorithms)), tuple(sorted(library.protocols)))]
    if not known:
        pairs = list(product(*CHOICES[library.name]))
    best: tuple[Cluster, Solution, tuple[tuple[str, ...], tuple[str, ...]]] | None = None
    for algorithms, protocols in pairs:
        named = replace(library, algorithms=frozenset(algorithms), protocols=frozenset(protocols))
        candidate = replace(cluster, library=named)
        solution = _solve(candidate, together, _parameters(together, candidate, copy_limit))
        # A further algorithm or protocol must earn its place.
        if best is None or solution.cost < 0.98 * best[1].cost:
            best = candidate, solution, (algorithms, protocols)
    assert best is not None
    chosen, solution, (algorithms, protocols) = best
    fitted = _with(chosen, solution.values)
    errors = [_error(solution, together, kind) for kind in _FORMULAS if any(s.kind == kind for s in together)]
    values = dict(solution.values)
    for name, sends in (
        ("node_send", [s for s in found if s.kind == "send" and s.stride < cluster.devices_per_node]),
        ("nic_send", [s for s in found if s.kind == "send" and s.stride >= cluster.devices_per_node]),
    ):
        if sends:
            start = values[name.replace("send", "rate")]
            parameter = Parameter(name=name, start=start, low=start / 100, high=start * 100)
            sent = _solve(fitted, sends, [parameter])
            values[name] = sent.values[name]
            fitted = _with(fitted, sent.values)
            errors.append(sent.error(f"send, {'node' if name == 'node_send' else 'network'}"))
    return LinksFit(
        cluster=fitted,
        algorithms=algorithms,
        protocols=protocols,
        launch_s=values["launch"],
        copy_bytes_per_s=values["copy"],
        node=_level(values, "node"),
        nic=_level(values, "nic"),
        errors=tuple(errors),
    )


def _inside(samples: Sequence[Sample], cluster: Cluster) -> list[Sample]:
    """Collectives that use the links inside the node."""
    per_node = cluster.devices_per_node
    return [s for s in samples if s.kind != "send" and s.stride * 2 <= per_node and not s.ranks]


def _across(samples: Sequence[Sample], cluster: Cluster) -> list[Sample]:
    """Collectives that use the network."""
    return [s for s in samples if s.kind != "send" and s.size * s.stride > cluster.devices_per_node]


def _tells(samples: Sequence[Sample]) -> bool:
    """Whether hops and rates can be told apart: messages of different sizes."""
    sizes = [sample.num_bytes for sample in samples]
    return bool(sizes) and max(sizes) >= _SPREAD * min(sizes)


def _solve(cluster: Cluster, samples: Sequence[Sample], parameters: Sequence[Parameter]) -> Solution:
    def seconds(values: dict[str, float]) -> list[float]:
        together = _with(cluster, values)
        alone = _alone(together, values)
        return [predict_s(alone if sample.ranks else together, sample) for sample in samples]

    return solve(seconds, [typical(sample.seconds) for sample in samples], parameters)


def _parameters(samples: Sequence[Sample], cluster: Cluster, copy_limit: float) -> list[Parameter]:
    """The unknowns that the samples can tell apart, begun from the smallest and the largest message."""
    least_s = min(typical(sample.seconds) for sample in samples)
    found = [
        Parameter(name="launch", start=least_s / 4, low=MICRO / 100, high=least_s),
        Parameter(name="copy", start=copy_limit / 2, low=copy_limit / 1e4, high=copy_limit),
    ]
    across = _across(samples, cluster)
    for level, some in (("node", _inside(samples, cluster)), ("nic", across)):
        if not some:
            continue
        found.append(Parameter(name=f"{level}_latency", start=least_s / 4, low=MICRO / 100, high=1.0))
        reference = _reference(cluster, level)
        rate = max(sample.num_bytes / typical(sample.seconds) for sample in some) / reference
        found.append(Parameter(name=f"{level}_rate", start=rate, low=rate / _BEYOND, high=rate * _BEYOND))
    alone = [sample for sample in samples if sample.ranks]
    if alone and any(not sample.ranks for sample in across):
        rate = max(sample.num_bytes / typical(sample.seconds) for sample in alone) / _reference(cluster, "nic")
        found.append(Parameter(name="nic_alone", start=rate, low=rate / _BEYOND, high=rate * _BEYOND))
    return found


def _reference(cluster: Cluster, level: str) -> float:
    machines = cluster.machines[0]
    if level == "nic":
        assert machines.nic is not None
        return machines.nic.bytes_per_s
    fabric = machines.node.fabric
    return max(link.bytes_per_s for link in fabric.links) if isinstance(fabric, Links) else fabric.bytes_per_s


def _with(cluster: Cluster, values: dict[str, float]) -> Cluster:
    """The cluster with figures in place; rates are fractions of its own bandwidths."""
    library = replace(
        cluster.library,
        launch_s=values.get("launch", cluster.library.launch_s),
        copy_bytes_per_s=values.get("copy", cluster.library.copy_bytes_per_s),
    )
    machines = cluster.machines[0]
    moved = replace(machines, node=_node(machines.node, values), nic=machines.nic and _nic(machines.nic, values))
    return replace(cluster, library=library, machines=(moved,))


def _node(node: Node, values: dict[str, float]) -> Node:
    rate = values.get("node_rate", node.collective_fraction)
    fabric = node.fabric
    if isinstance(fabric, Links) and "node_rate" in values:
        fabric = Links(links=tuple(replace(link, collective_fraction=rate) for link in fabric.links))
    return replace(
        node,
        fabric=fabric,
        latency_s=values.get("node_latency", node.latency_s),
        collective_fraction=rate,
        send_fraction=values.get("node_send", node.send_fraction),
    )


def _nic(nic: Nic, values: dict[str, float]) -> Nic:
    rate = values.get("nic_rate", nic.collective_fraction)
    return replace(
        nic,
        latency_s=values.get("nic_latency", nic.latency_s),
        collective_fraction=rate,
        contended_fraction=rate,
        send_fraction=values.get("nic_send", nic.send_fraction),
    )


def _alone(cluster: Cluster, values: dict[str, float]) -> Cluster:
    """The cluster as one device of each node sees it while the others are silent: the whole card, and all uplinks."""
    machines = cluster.machines[0]
    if machines.nic is None:
        return cluster
    nic = replace(
        machines.nic,
        attached=tuple((device,) for device in range(cluster.devices_per_node)),
        collective_fraction=values.get("nic_alone", machines.nic.collective_fraction),
    )
    per_node = cluster.devices_per_node
    network = tuple(
        replace(level, uplink_devices=max(1, level.uplink_devices // per_node)) for level in cluster.network
    )
    return replace(cluster, machines=(replace(machines, nic=nic),), network=network)


def _level(values: dict[str, float], level: str) -> Level | None:
    if f"{level}_rate" not in values:
        return None
    rate = values[f"{level}_rate"]
    return Level(
        latency_s=values[f"{level}_latency"],
        fraction=rate,
        alone_fraction=values.get(f"{level}_alone"),
        send_fraction=values.get(f"{level}_send", rate),
    )


def _error(solution: Solution, samples: Sequence[Sample], kind: str) -> ClassError:
    return solution.error(kind, np.array([sample.kind == kind for sample in samples]))
