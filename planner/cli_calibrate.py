"""``meshwright calibrate``: one's own measured steps refine a hardware profile."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli_streams import emit, progress, say, width


def calibrate(
    runs: Annotated[Path, typer.Argument(metavar="RUNS.json", help="File of measured rows, as validate reads it.")],
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of this hardware, named as in them, or profile.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the refined profile (TOML).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the profile; default from the file.")] = None,
    date: Annotated[str | None, typer.Option(help="Date that the profile bears.", show_default="today")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Fit the figures of a cluster's profile to steps that were measured on it, and write the profile."""
    from planner import plan_file
    from planner.validation import own_report, own_runs
    from planner.validation.case_files import load_cases

    if output is not None:
        plan_file.check_output(output, force=force)
    with progress() as doing:
        found = own_runs.fit_runs(load_cases([runs]), hardware, doing)
    for own in found.figures:
        if not own.informed:
            say(f"{own.figure}: {own.runs} runs inform it, {own_runs.MIN_RUNS} are needed; it stays as shipped")
    if output is not None:
        from hardware_profiles.measure import profile_name

        today = date or datetime.date.today().isoformat()
        called = name or profile_name(output.stem)
        for path in own_report.write_profile(found, output, name=called, runs=runs, date=today):
            say(f"warning: {path}: the runs ask for more than the whole; it is 1")
        say(f"saved {output}")
    if as_json:
        emit(own_report.to_json(found))
    else:
        emit(own_report.render(found, width=width(), color=sys.stdout.isatty()))
