"""What a mesh would find on a cluster: per axis the levels of links its groups cross, and what collectives reach."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import lcm, prod
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from costmodels import units
from costmodels.communication import all_gather_s, all_reduce_s, send_recv_s
from hardware_profiles.cluster import Cluster, Group
from hardware_profiles.topology import boundary, group
from planner.errors import UsageError
from planner.report.columns import columns, text

ORDER = ("pp", "dp_replicate", "dp_shard", "cp", "ep", "tp")
"""Mesh axes, outer to inner: those of `planner.plan.AXES`, and the two that a model may give meaning to."""

MESSAGE_BYTES = 64 * units.MIB

_HOW = f"write for example --axes tp=8,dp_shard=4,pp=2 with axes of {', '.join(ORDER)}"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One collective of `MESSAGE_BYTES` over one group of an axis, while all groups of the axis communicate."""

    name: str
    seconds: float
    bus_bytes_per_s: float
    """Bandwidth of the busiest link as nccl-tests counts it (doc/PERFORMANCE.md): message over time, times
    ``2 (n - 1) / n`` for an all-reduce, ``(n - 1) / n`` for an all-gather, 1 for a send."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a mesh on a cluster."""

    name: str
    size: int
    stride: int
    """Ranks between neighbours: the product of the sizes of the axes inside this one."""
    group: Group
    """The slowest group; of ``pp`` the slowest boundary between stages."""
    calls: tuple[Call, ...]


_SIZE = re.compile(r"^[1-9][0-9]{0,8}$")


def parse_axes(written: str) -> dict[str, int]:
    """Sizes by axis, outer to inner, from ``tp=8,dp_shard=4`` in any order; `UsageError` says what it is not."""
    sizes: dict[str, int] = {}
    for part in written.split(","):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if name == "dp":
            raise UsageError(
                f"--axes {written}: 'dp' is not an axis: data parallelism has two, dp_shard, whose devices shard the "
                f"state, and dp_replicate, whose devices hold copies; {_HOW}"
            )
        if not equals or not _SIZE.match(size):
            raise UsageError(f"--axes {written}: {part.strip()!r} is not NAME=SIZE with a size of at least 1; {_HOW}")
        if name not in ORDER:
            raise UsageError(f"--axes {written}: unknown axis {name!r}; {_HOW}")
        if name in sizes:
            raise UsageError(f"--axes {written}: {name} is given twice ({sizes[name]} and {size}); give it once")
        sizes[name] = int(size)
    return {name: sizes[name] for name in ORDER if name in sizes}


def axes_of(cluster: Cluster, sizes: Mapping[str, int]) -> tuple[Axis, ...]:
    """The axes of a mesh of ``sizes`` (outer to inner, as `parse_axes` gives them) on the cluster's devices.

    A mesh smaller than the cluster stands there several times, side by side. Raises `UsageError` where the product of
    the sizes does not divide the number of devices.
    """
    product, total = prod(sizes.values()), cluster.num_devices
    if total % product:
        written = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise UsageError(
            f"a mesh of {written} has {product} ranks, which must divide the {total} devices of {cluster.name}; "
            "change a size, or the number of devices"
        )
    axes, stride = [], 1
    for name, size in reversed(list(sizes.items())):
        if name == "pp" and size > 1:
            links = _boundary(cluster, size, stride, copies=total // product)
            calls: tuple[Call, ...] = (_call("send", send_recv_s(links, MESSAGE_BYTES), 1.0),)
        else:
            links = group(cluster, size=size, stride=stride)
            calls = _collectives(links)
        axes.append(Axis(name=name, size=size, stride=stride, group=links, calls=calls))
        stride *= size
    return tuple(reversed(axes))


def render_axes(cluster: Cluster, axes: tuple[Axis, ...], *, width: int, color: bool = False) -> str:
    """Two tables with the axes outer to inner: the links of each, and the time of collectives over them."""
    mesh = " x ".join(f"{axis.name} {axis.size}" for axis in axes)
    copies = cluster.num_devices // prod(axis.size for axis in axes)
    more = f", {copies} of these meshes side by side" if copies > 1 else ""
    headline = Text.assemble((cluster.name, "bold"), f": {cluster.num_devices:,} devices, mesh {mesh}{more}")
    about = Text(
        f"{units.format_bytes(MESSAGE_BYTES)} while all groups of the axis communicate: time, and bus bandwidth "
        "as nccl-tests counts it (of an all-gather the message is the gathered whole)"
    )
    return text([headline, _links(axes), about, _times(axes)], width=width, color=color, wrap=True)


def axes_json(cluster: Cluster, axes: tuple[Axis, ...]) -> dict[str, Any]:
    """What `render_axes` shows, in SI units."""
    return {
        "cluster": cluster.name,
        "num_devices": cluster.num_devices,
        "message_bytes": MESSAGE_BYTES,
        "axes": [
            {
                "name": axis.name,
                "size": axis.size,
                "stride": axis.stride,
                "levels": [asdict(level) for level in axis.group.levels],
                "calls": [asdict(call) for call in axis.calls],
            }
            for axis in axes
        ],
    }


def _boundary(cluster: Cluster, size: int, stride: int, *, copies: int) -> Group:
    """The slowest boundary between neighbouring stages, of all ``copies`` of the mesh."""
    if copies == 1:
        return boundary(cluster, stride=stride)
    period = lcm(size * stride, *(level.num_devices for level in cluster.network[:-1]), cluster.devices_per_node)
    indices = (c * size + stage for c in range(min(copies, period // (size * stride))) for stage in range(size - 1))
    links = dict.fromkeys(boundary(cluster, stride=stride, index=index) for index in indices)
    return max(links, key=lambda link: (send_recv_s(link, MESSAGE_BYTES), link.levels[-1].latency_s))


def _collectives(links: Group) -> tuple[Call, ...]:
    n = links.size
    if n == 1:
        return ()
    return (
        _call("all-reduce", all_reduce_s(links, MESSAGE_BYTES), 2 * (n - 1) / n),
        _call("all-gather", all_gather_s(links, MESSAGE_BYTES), (n - 1) / n),
    )


def _call(name: str, seconds: float, factor: float) -> Call:
    return Call(name=name, seconds=seconds, bus_bytes_per_s=factor * MESSAGE_BYTES / seconds)


def _links(axes: tuple[Axis, ...]) -> RenderableType:
    table = columns("axis", ">size", ">stride", "level", ">fan", ">per rank", ">hop", "because")
    for axis in axes:
        known = [axis.name, f"{axis.size:,}", f"{axis.stride:,}"]
        if not axis.group.levels:
            table.add_row(*known, "", "", "", "", "no communication")
        for level in axis.group.levels:
            rate, hop = units.format_bandwidth(level.bytes_per_s), units.format_seconds(level.latency_s)
            table.add_row(*known, level.name, f"{level.fan:,}", rate, hop, level.limit)
            known = ["", "", ""]
    return table


def _times(axes: tuple[Axis, ...]) -> RenderableType:
    """A row per axis; an axis has either the collectives or the send."""
    kinds = ("all-reduce", "all-gather", "send")
    present = [kind for kind in kinds if any(call.name == kind for axis in axes for call in axis.calls)]
    table = columns("axis", *(header for kind in present for header in (f">{kind}", ">bus")), "")
    for axis in axes:
        calls = {call.name: call for call in axis.calls}
        cells = [
            cell
            for kind in present
            for cell in (
                (units.format_seconds(calls[kind].seconds), units.format_bandwidth(calls[kind].bus_bytes_per_s))
                if kind in calls
                else ("-", "-")
            )
        ]
        table.add_row(axis.name, *cells)
    return table
