"""``meshwright run``: train a plan on this machine, or on many processes under torchrun."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli_streams import emit, progress, say
from planner.errors import MeshwrightError


def run(
    plan: Annotated[Path, typer.Argument(help="Plan file; as many processes as it has devices must run this.")],
    steps: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Optimizer steps.")] = 10,
    model: Annotated[
        str | None,
        typer.Option(help="path/to/file.py:factory or hf:path/to/config.json; default the plan's, if built in."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tokens, .npy or .bin (16 bits each); default made up, one batch."),
    ] = None,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and data.")] = 0,
    compile_blocks: Annotated[bool, typer.Option("--compile", help="Give every block to torch.compile.")] = False,
    hardware: Annotated[
        str | None, typer.Option(help="Profile to predict with; default the plan's, and its own prediction.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save the last step as Chrome traces there, beside the predicted one."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Begin from this checkpoint, whatever plan it was saved under.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save weights and optimizer there after the last step.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing traces and checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Train a plan's model for some steps, and compare time and memory with what the plan predicts.

    torchrun --nproc-per-node 8 -m planner run plan.json --steps 20
    """
    from planner import plan_file
    from planner.report import run as report

    first = os.environ.get("RANK", "0") == "0"
    _warn_once(first)
    try:
        read = plan_file.read(plan)
        with progress() as doing:
            if first:
                doing("laying the model out")
            from planner.runtime.run import prepare  # torch takes seconds to import
            from planner.runtime.train import Settings

            settings = Settings(
                steps=steps, model=model, data=data, lr=lr, seed=seed, compile=compile_blocks, trace=trace,
                resume=resume, checkpoint=checkpoint,
            )  # fmt: skip
            prepared = prepare(read, settings, hardware=hardware, force=force, say=say if first else lambda _: None)
    except MeshwrightError as error:
        # Every rank has found the same; the first one says it.
        if first:
            raise
        raise typer.Exit(error.exit_code) from None
    shown = first and not as_json
    if shown:
        emit(report.heading(read))
    result = prepared.steps(lambda step: emit(report.step_line(read, step)) if shown else None)
    if first:
        emit(report.to_json(result) if as_json else report.render(result, traces=trace, color=sys.stdout.isatty()))
    prepared.close()


def _warn_once(first: bool) -> None:
    """Warnings as talk of the first rank."""

    def told(message: Warning | str, *_: Any, **__: Any) -> None:
        if first:
            say(f"warning: {message}")

    warnings.showwarning = told
