"""A hardware profile as a picture (SVG): the device's rooflines, and the collectives' bandwidth over message size.

Needs matplotlib, the optional extra ``plot``. Equal profiles give equal bytes, with one version of matplotlib.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from costmodels import units
from costmodels.communication import all_gather_s, all_reduce_s
from hardware_profiles.cluster import Cluster, Device
from hardware_profiles.topology import group
from planner.report.plotting import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTENSITIES = np.logspace(-2, 4, 121)
"""FLOP per byte."""

MESSAGES_BYTES = tuple(units.KIB * 2 ** (step / 2) for step in range(41))
"""1 KiB to 1 GiB."""

_SIZE_INCHES = (13.0, 5.5)


def render(cluster: Cluster) -> str:
    """SVG with two panels; raises `MissingPackageError` without matplotlib.

    Left: attainable FLOP/s over arithmetic intensity ``I``, ``min(peak, bandwidth * I)`` for every dtype and memory
    tier, and dashed what large kernels reach, ``min(peak * gemm, bandwidth * pointwise * I)`` (Williams, Waterman &
    Patterson 2009). Right: bus bandwidth as nccl-tests counts it over message size, for 2 devices, one node, and all of
    ``cluster``. Every curve is an SVG group whose id starts with ``roof:``, ``reached:``, ``all-reduce:`` or
    ``all-gather:``.
    """
    mpl, Figure = plotting()  # noqa: N806
    # Text stays text and ids do not depend on the run: the same bytes every time.
    with mpl.rc_context({"svg.hashsalt": "meshwright", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        left, right = figure.subplots(1, 2)
        _rooflines(left, cluster.device)
        _bandwidths(right, cluster)
        figure.suptitle(cluster.name)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def roofs(device: Device) -> dict[str, tuple[float, float]]:
    """(peak in FLOP/s, bandwidth in bytes/s) of every curve of the left panel by its id."""
    memories = {"memory": device.memory_bytes_per_s} | {tier.name: tier.bytes_per_s for tier in device.tiers}
    found: dict[str, tuple[float, float]] = {}
    for dtype, peak in device.peak_flop_per_s:
        for memory, bandwidth in memories.items():
            found[f"roof:{dtype}:{memory}"] = (peak, bandwidth)
            reached = (peak * device.efficiency.gemm, bandwidth * device.efficiency.pointwise)
            found[f"reached:{dtype}:{memory}"] = reached
    return found


def bandwidths(cluster: Cluster) -> dict[str, list[float]]:
    """Bus bandwidth in bytes/s at `MESSAGES_BYTES` of every curve of the right panel by its id."""
    sizes = sorted({2, cluster.devices_per_node, cluster.num_devices} - {1})
    found: dict[str, list[float]] = {}
    for size in sizes:
        if size > cluster.num_devices:
            continue
        members = group(cluster, size=size, stride=1)
        share = (size - 1) / size
        found[f"all-reduce:{size}"] = [2 * share * m / all_reduce_s(members, m) for m in MESSAGES_BYTES]
        found[f"all-gather:{size}"] = [share * m / all_gather_s(members, m) for m in MESSAGES_BYTES]
    return found


def _rooflines(axes: Axes, device: Device) -> None:
    colors: dict[str, str] = {}
    for name, (peak, bandwidth) in roofs(device).items():
        kind, dtype, memory = name.split(":")
        color = colors.setdefault(dtype, f"C{len(colors)}")
        label = dtype if memory == "memory" else f"{dtype}, {memory}"
        axes.plot(
            INTENSITIES,
            units.tflop_per_s(1.0) * np.minimum(peak, bandwidth * INTENSITIES),
            color=color,
            linestyle="-" if kind == "roof" else "--",
            linewidth=1.6 if memory == "memory" else 0.8,
            label=label if kind == "roof" else None,
            gid=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOP per byte", ylabel="TFLOP/s")
    axes.set_title(f"{device.name}: peaks, and dashed what large kernels reach", fontsize="medium")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")


def _bandwidths(axes: Axes, cluster: Cluster) -> None:
    colors: dict[str, str] = {}
    for name, rates in bandwidths(cluster).items():
        collective, size = name.split(":")
        color = colors.setdefault(size, f"C{len(colors)}")
        nodes = max(1, int(size) // cluster.devices_per_node)
        where = f"{nodes} nodes" if nodes > 1 else "one node"
        axes.plot(
            [message / units.MIB for message in MESSAGES_BYTES],
            [units.gb_per_s(rate) for rate in rates],
            color=color,
            linestyle="-" if collective == "all-reduce" else "--",
            label=f"{collective}, {size} devices, {where}",
            gid=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="message, MiB", ylabel="bus bandwidth, GB/s")
    axes.set_title(f"collectives ({cluster.library.name})", fontsize="medium")
    axes.grid(visible=True, alpha=0.3)
    if colors:
        axes.legend(fontsize="small")
