"""A plan for what is left beside the old one, and the way there: tables and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from costmodels import units
from planner import plan_file
from planner.plan import Plan
from planner.report.columns import columns, text
from planner.report.table import layout_words

if TYPE_CHECKING:
    from planner.replan import Replanned


def render(old: Plan, found: Replanned, *, storage_bytes_per_s: float, color: bool = False) -> str:
    """Both plans, what every device has to fetch, how long that takes, and what is assumed."""
    sections = [_headline(old, found), _plans(old, found), _moving(found), _assumed(storage_bytes_per_s)]
    return text(sections, color=color)


def to_json(found: Replanned) -> str:
    """One object: the new plan, and by device of it the bytes of parameters and optimizer states that it ``held``, of
    which it ``kept`` some, ``fetched`` some over the network and reads what is ``lost`` from the checkpoint."""
    moved, size = found.moving, found.element_bytes
    return (
        json.dumps(
            {
                "plan": json.loads(plan_file.to_json(found.plan)),
                "left": {"nodes": found.left.nodes, "devices_per_node": found.left.per_node},
                "moving": {
                    "bytes_per_parameter": size,
                    "network_s": found.network_s,
                    "storage_s": found.storage_s,
                    "reload_s": found.reload_s,
                    "devices": [
                        {"rank": rank, "held": h * size, "kept": k * size, "fetched": f * size, "lost": lost * size}
                        for rank, (h, k, f, lost) in enumerate(
                            zip(*(a.tolist() for a in (moved.held, moved.kept, moved.fetched, moved.lost)), strict=True)
                        )
                    ],
                },
            },
            indent=2,
        )
        + "\n"
    )


def _headline(old: Plan, found: Replanned) -> RenderableType:
    alive, used = sum(found.left.alive), found.plan.candidate.num_devices
    idle = f", of which {alive - used:,} stay idle" if alive > used else ""
    return Text.assemble(
        (old.inputs.model, "bold"),
        f" on {old.inputs.hardware}: {alive:,} of {old.inputs.num_devices:,} devices are left{idle}; "
        f"global batch {old.inputs.job.global_batch:,} as before",
    )


def _plans(old: Plan, found: Replanned) -> RenderableType:
    table = columns("", ">devices", "layout", "recompute", ">step", ">peak", "")
    for name, plan in (("before", old), ("after", found.plan)):
        step = peak = "unknown"
        if plan.predicted is not None:
            step, peak = (
                units.format_seconds(plan.predicted.step_s), units.format_bytes(plan.predicted.peak_bytes)
            )  # fmt: skip
        c = plan.candidate
        table.add_row(name, f"{c.num_devices:,}", layout_words(c), c.recompute, step, peak, "")
    return table


def _moving(found: Replanned) -> RenderableType:
    moved, size = found.moving, found.element_bytes
    table = columns("parameters and optimizer states", ">all devices", ">most on one", ">seconds", "")
    rows: list[tuple[str, Any, str]] = [
        ("share under the new plan", moved.held, ""),
        ("there already", moved.kept, ""),
        ("from other devices", moved.fetched, units.format_seconds(found.network_s)),
        ("lost: from the checkpoint", moved.lost, units.format_seconds(found.storage_s)),
        ("all from the checkpoint instead", moved.held, units.format_seconds(found.reload_s)),
    ]
    for name, elements, seconds in rows:
        total, most = int(elements.sum()) * size, int(elements.max()) * size
        table.add_row(name, units.format_bytes(total), units.format_bytes(most), seconds, "")
    return table


def _assumed(storage_bytes_per_s: float) -> RenderableType:
    return Text(
        "assumed: the last devices are lost, the others keep their order; all fetch at once, over the slowest link;\n"
        f"a node reads a checkpoint at {units.format_bandwidth(storage_bytes_per_s)}; nothing is hidden behind anything"
    )
