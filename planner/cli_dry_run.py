"""``meshwright dry-run``: execute a plan at its full size without devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli_streams import emit, progress, say

DIFFERS = 6
"""Exit code where something is further off than ``--max-diff`` allows."""


def _share(text: str) -> float:
    """``5%`` or ``0.05``."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{text!r} is no share: write 5% or 0.05")
    return value


def _rank(text: str) -> int | None:
    """``all``, or a rank."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is no rank: write a number, or all")
    return int(text)


def dry_run(
    plan: Annotated[Path, typer.Argument(help="A plan file.")],
    rank: Annotated[
        str, typer.Option(metavar="all|N", help="The rank to run; all: one of each kind, which speaks for its equals.")
    ] = "all",
    max_diff: Annotated[
        str, typer.Option(metavar="SHARE", help="Exit code 6 where peak memory or a collective differs by more.")
    ] = "5%",
    model: Annotated[
        str | None,
        typer.Option(help="The model where the plan's own name does not lead to it: path/to/file.py:factory or hf:..."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Run one whole step of a plan on fake devices, at full size, and compare it with the plan's prediction."""
    from planner.plan_file import read
    from planner.report import dry_run as report

    wanted, allowed = _rank(rank), _share(max_diff)
    read_plan = read(plan)
    with progress() as doing:
        doing("importing torch")
        from planner.runtime import dry_run as runtime

        found = runtime.dry_run(read_plan, model, rank=wanted, max_difference=allowed, progress=doing)
    emit(report.to_json(found) if as_json else report.render(found, color=sys.stdout.isatty()))
    if not found.ok:
        worst = max(found.ranks, key=lambda one: one.largest)
        say(f"rank {worst.rank} differs from the prediction by {worst.largest:.1%}, at most {allowed:.3g} is allowed")
        raise typer.Exit(DIFFERS)
