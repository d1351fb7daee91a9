"""Layouts over a mesh of any axes, as tables or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from costmodels import units
from planner.layout_result import LayoutResult
from planner.report.columns import columns, text
from planner.report.layer_detail import block_name, operations_table, total_s


def render(found: LayoutResult, *, color: bool = False) -> str:
    """What was solved and how sure it is, where time goes, how parameters lie, and the operations of the block that is
    called most often."""
    most = max(found.blocks, key=lambda block: block.layout.calls)
    title = Text.assemble((block_name(most.layout), "bold"), f" ({most.layout.calls} calls): operations")
    sections = [_headline(found), _blocks(found), _params(found), title, operations_table(most.layout)]
    return text(sections, width=None, color=color)


def to_json(found: LayoutResult) -> str:
    """All of it as one JSON object."""
    return json.dumps({**asdict(found), "gap": found.gap}, indent=2) + "\n"


def _headline(found: LayoutResult) -> RenderableType:
    axes = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    proof = "proven best" if found.gap < 1e-9 else f"at most {found.gap:.2%} slower than any that fit"
    return Text.assemble(
        (found.model, "bold"),
        f" on {found.hardware}, mesh {axes}: {found.batch:,} x {found.seq_len:,} tokens in "
        f"{units.format_seconds(found.seconds)}, nothing hidden behind anything ({proof})\n"
        f"peak {units.format_bytes(found.peak_bytes)} of {units.format_bytes(found.limit_bytes)}; seen: "
        + ", ".join(f"{units.format_seconds(s)} with {units.format_bytes(b)}" for s, b in found.tradeoff)
        + "\nplacements per mesh axis: S(d) sharded, R whole, B whole with a partial gradient, P partial sum",
    )


def _blocks(found: LayoutResult) -> RenderableType:
    table = columns("block", ">calls", ">forward", ">backward", "")
    for block in found.blocks:
        forward, backward = total_s(block.layout)
        row = block_name(block.layout), str(block.layout.calls), units.format_seconds(forward)
        table.add_row(*row, units.format_seconds(backward), "")
    return table


def _params(found: LayoutResult) -> RenderableType:
    table: Table = columns("parameter", "at rest")
    for block in found.blocks:
        for fqn, placed in block.params.items():
            table.add_row(fqn, placed)
    return table
