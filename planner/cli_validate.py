"""``meshwright validate``: price published training runs and compare with what was measured."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli_streams import emit, progress, say, width

INACCURATE = 6
"""Exit code of a run that is further off than ``--max-median`` allows."""


def validate(
    cases: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="File of measured rows; repeatable; default those that come with Meshwright."
        ),
    ] = None,
    hardware: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only rows of this hardware, named as in them; repeatable.")
    ] = None,
    core: Annotated[bool, typer.Option("--core", help="Only the spread rows of each sweep.")] = False,
    datasheet: Annotated[
        bool, typer.Option("--datasheet", help="Price with figures of profiles alone, without calibration.")
    ] = False,
    max_median: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            min=0,
            help="Exit code 6 where the median error of dense models is larger: of the headline's "
            "rows, or of all that are scored where none is of the headline.",
        ),
    ] = None,
    docs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write accuracy.md and accuracy.svg there instead of tables.")
    ] = None,
    date: Annotated[str | None, typer.Option(help="Date that the page bears.", show_default="today")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Price published training runs, each with exactly its layout, and compare with what was measured."""
    from planner.validation import command, report
    from planner.validation.statistics import summarise

    rows = command.select(cases or (), hardware or (), core=core)
    if not datasheet and (hardware or core) and not cases:
        say("errors are in-sample: constants left out by source need all rows that ship, without --hardware and --core")
    with progress() as doing:
        outcomes = command.price_cases(rows, calibrated=not datasheet, progress=doing)
        summary = summarise(outcomes, () if datasheet else command.left_out(outcomes, doing))
        calibration = ""
        if docs is not None and summary.in_sample:
            calibration = command.calibration_section(outcomes, summary, doing)
    if docs is not None:
        today = date or datetime.date.today().isoformat()
        typed = shlex.join(["meshwright", *sys.argv[1:]])
        path = command.write_page(docs, outcomes, summary, date=today, command=typed, calibration=calibration)
        say(f"saved {path}")
    if as_json:
        emit(command.to_json(outcomes, summary))
    elif docs is None:
        emit(report.render(outcomes, summary, width=width(), color=sys.stdout.isatty()))
    if max_median is not None:
        name, median = command.gate(summary)
        if median is None or median * 100 > max_median:
            found = "none has a price" if median is None else f"the median error is {median:.1%}"
            say(f"{name}: {found}, at most {max_median:g}% is allowed")
            raise typer.Exit(INACCURATE)
