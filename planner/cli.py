"""The ``meshwright`` command: thin commands that call one function each and print what it gives.

Data goes to stdout, everything else (progress, warnings, errors) to stderr. Exit codes: 0 done, 2 usage, 3 no plan
fits, 4 bad input file or name, 5 measuring lost a rank, 6 predictions further off than allowed, 1 our bug. What is
heavy (torch, pydantic) is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from planner import (
    cli_calibrate,
    cli_dry_run,
    cli_hardware,
    cli_layouts,
    cli_replan,
    cli_run,
    cli_support,
    cli_validate,
)
from planner.cli_streams import emit, progress, say
from planner.errors import MeshwrightError, ModelSourceError

app = typer.Typer(
    name="meshwright",
    help="Find the best layout of a PyTorch training job over a cluster, and see why it is the best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
schema_app = typer.Typer(help="JSON Schemas of the files that Meshwright writes.", no_args_is_help=True)
app.add_typer(cli_hardware.app, name="hardware")
app.add_typer(schema_app, name="schema")
app.command()(cli_layouts.layouts)
app.command("dry-run")(cli_dry_run.dry_run)
app.command(cls=cli_replan.ReplanCommand)(cli_replan.replan)
app.command()(cli_run.run)
app.command()(cli_support.support)
app.command()(cli_validate.validate)
app.command()(cli_calibrate.calibrate)

_JOB = "Job"
_PINS = "Limits and pins of the search"
_OUTPUT = "Output"
_DEFAULT_HARDWARE, _DEFAULT_SHAPE = "h100-sxm", "8x8"
_LARGEST = 2**31 - 1
"""Of any count: what the command line takes for a slip of the finger beyond."""


def _size(panel: str, meaning: str) -> Any:
    """An option that takes a count of at least one; left out, the planner chooses."""
    return typer.Option(min=1, max=_LARGEST, help=meaning, rich_help_panel=panel)


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="Built-in name, path/to/file.py:factory, or hf:path/to/config.json.")
    ] = "llama3-70b",
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Profile name or TOML file; NAME:8x8 is 8 nodes of 8 devices.",
            show_default=f"{_DEFAULT_HARDWARE}:{_DEFAULT_SHAPE}",
            rich_help_panel=_JOB,
        ),
    ] = None,
    devices: Annotated[int | None, _size(_JOB, "Number of devices, where the hardware names no shape.")] = None,
    global_batch: Annotated[int | None, _size(_JOB, "Samples per optimizer step; default 8 per device.")] = None,
    seq_len: Annotated[int | None, _size(_JOB, "Tokens per sample; default the model's.")] = None,
    precision: Annotated[str, typer.Option(help="Precision recipe.", rich_help_panel=_JOB)] = "bf16",
    optimizer: Annotated[str, typer.Option(help="Optimizer.", rich_help_panel=_JOB)] = "adamw",
    max_tp: Annotated[int | None, _size(_PINS, "Most devices that share a layer's tensors.")] = None,
    max_pp: Annotated[int | None, _size(_PINS, "Most pipeline stages.")] = None,
    tp: Annotated[int | None, _size(_PINS, "Devices that share a layer's tensors.")] = None,
    pp: Annotated[int | None, _size(_PINS, "Pipeline stages.")] = None,
    dp_replicate: Annotated[int | None, _size(_PINS, "Data-parallel replicas of the sharded state.")] = None,
    dp_shard: Annotated[int | None, _size(_PINS, "Data-parallel devices that shard the state.")] = None,
    microbatch_size: Annotated[int | None, _size(_PINS, "Samples per microbatch.")] = None,
    recompute: Annotated[
        Literal["none", "selective", "full"] | None,
        typer.Option(help="What is computed again in the backward pass.", rich_help_panel=_PINS),
    ] = None,
    pins: Annotated[
        Path | None,
        typer.Option(help="TOML file of layouts to obey: [[pin]] with fqn and layout.", rich_help_panel=_PINS),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="Number of plans to show, each with another mesh.", rich_help_panel=_OUTPUT)
    ] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the plan in this file.", rich_help_panel=_OUTPUT)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.", rich_help_panel=_OUTPUT)] = False,
    layer_detail: Annotated[
        bool,
        typer.Option(
            "--layer-detail", help="Print the layout and price of every operation of a block.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Recommend a layout: mesh, stages, microbatches, recomputation and sharding, with its price."""
    from planner import plan_file
    from planner.job import Constraints
    from planner.pin_file import read_pins
    from planner.planning import make_plan
    from planner.report import layer_detail as layer_detail_table
    from planner.report import table

    if output is not None:
        plan_file.check_output(output, force=force)
    constraints = Constraints(
        max_tp=max_tp,
        max_pp=max_pp,
        tp=tp,
        pp=pp,
        dp_replicate=dp_replicate,
        dp_shard=dp_shard,
        microbatch_size=microbatch_size,
        recompute=recompute,
        pins=read_pins(pins) if pins else (),
    )
    default = f"{_DEFAULT_HARDWARE}:{_DEFAULT_SHAPE}" if devices is None else _DEFAULT_HARDWARE
    with progress() as doing:
        result = make_plan(
            model,
            hardware=default if hardware is None else hardware,
            devices=devices,
            global_batch=global_batch,
            seq_len=seq_len,
            precision=precision,
            optimizer=optimizer,
            constraints=constraints,
            top=top,
            progress=doing,
        )
    for warning in result.plan.warnings:
        say(f"warning: {warning}")
    if output is not None:
        plan_file.write(result.plan, output, force=force)
    if as_json:
        emit(plan_file.result_to_json(result))
    else:
        emit(table.render(result, saved=output, color=sys.stdout.isatty()))
        if layer_detail:
            emit("\n" + layer_detail_table.render(result.plan, color=sys.stdout.isatty()))


@app.command()
def models() -> None:
    """List the built-in models."""
    from planner.models import names, preset
    from planner.report import table

    emit(table.render_models({name: preset(name) for name in names()}))


@schema_app.command("plan")
def schema_plan() -> None:
    """Print the JSON Schema of the plan file."""
    import json

    from planner.plan_file import json_schema

    emit(json.dumps(json_schema(), indent=2) + "\n")


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        emit(f"meshwright {version('meshwright')}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        app()
    except MeshwrightError as error:
        if isinstance(error, ModelSourceError) and error.__cause__ is not None:
            import traceback

            # The user's own code failed: its traceback says where, our message what that means.
            traceback.print_exception(error.__cause__)
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("MESHWRIGHT_DEBUG"):
            raise
        say(f"internal error: {type(error).__name__}: {error}")
        say("this is a bug in Meshwright; report it with the command and what it prints under MESHWRIGHT_DEBUG=1")
        sys.exit(1)
