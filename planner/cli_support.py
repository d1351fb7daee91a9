"""``meshwright support``: which operations of a model the layout solver has rules for."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from planner.cli_streams import emit, progress


def support(
    model: Annotated[str, typer.Argument(help="Built-in name, path/to/file.py:factory, or hf:path/to/config.json.")],
    seq_len: Annotated[
        int | None, typer.Option(min=1, max=(1 << 31) - 1, help="Tokens per sample; default the model's.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision recipe.")] = "bf16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """List a model's operations: which have layout rules, and what share of the work they do."""
    from costmodels.memory import PRECISIONS
    from planner.errors import UnknownNameError
    from planner.report import coverage as report

    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    with progress() as doing:
        doing("tracing the model")
        from planner.capture.sources import capture_model  # torch takes seconds to import
        from planner.layouts.strategies import coverage

        graph, _, _ = capture_model(model, seq_len=seq_len, compute_dtype=PRECISIONS[precision].compute_dtype)
        found = coverage(graph)
    emit(report.to_json(graph.name, found) if as_json else report.render(graph.name, found, color=sys.stdout.isatty()))
