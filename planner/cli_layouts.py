"""``meshwright layouts``: layouts of every operation over a mesh that the user names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli_streams import emit, progress, say


def layouts(
    model: Annotated[str, typer.Argument(help="Built-in name, path/to/file.py:factory, or hf:path/to/config.json.")],
    mesh: Annotated[
        str, typer.Option(help="Axes and sizes, outer to inner; their names are yours.", metavar="dp=8,tp=8")
    ],
    batch: Annotated[
        int, typer.Option(min=1, max=(1 << 31) - 1, help="Samples of one forward and backward pass over all devices.")
    ],
    hardware: Annotated[str, typer.Option(help="Profile name or TOML file; NAME:8x8 is 8 nodes of 8.")] = "h100-sxm",
    seq_len: Annotated[
        int | None, typer.Option(min=1, max=(1 << 31) - 1, help="Tokens per sample; default the model's.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision recipe.")] = "bf16",
    optimizer: Annotated[str, typer.Option(help="Optimizer.")] = "adamw",
    pins: Annotated[
        Path | None, typer.Option(help="TOML file of layouts to obey: [[pin]] with fqn and layout.")
    ] = None,
    tradeoff: Annotated[
        bool, typer.Option("--tradeoff", help="Find all corners of the trade-off between seconds and memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Lay out every operation over a given mesh, whatever its axes are for, with the proof."""
    from planner.layout_planning import best_layouts, parse_mesh
    from planner.pin_file import read_pins
    from planner.report import layouts as report

    axes = parse_mesh(mesh)
    settled = read_pins(pins) if pins else ()
    with progress() as doing:
        doing("tracing and solving")
        found = best_layouts(
            model, hardware=hardware, mesh=axes, batch=batch, seq_len=seq_len, precision=precision,
            optimizer=optimizer, pins=settled, whole_tradeoff=tradeoff,
        )  # fmt: skip
    for warning in found.warnings:
        say(f"warning: {warning}")
    emit(report.to_json(found) if as_json else report.render(found, color=sys.stdout.isatty()))
