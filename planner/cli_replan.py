"""``meshwright replan``: a plan for what a failure left, and the cost of moving to it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from planner.cli_streams import emit, progress, say
from planner.errors import UsageError

_LOST = re.compile(r"(\d+) ?(node|device)s?")


class ReplanCommand(TyperCommand):
    """Takes ``--lost 1 node`` as one value, with or without quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        for arg in args:
            if joined[-2:-1] == ["--lost"] and joined[-1].isdigit() and not arg.startswith("-"):
                joined[-1] += f" {arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def replan(
    plan: Annotated[Path, typer.Argument(help="File of the plan that the job has run under.")],
    lost: Annotated[
        list[str], typer.Option(help="What is lost; again for more.", metavar="1 node | 3 devices", show_default=False)
    ],
    hardware: Annotated[
        str | None, typer.Option(help="Profile TOML file, where the plan's hardware is none that ships.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model where the plan's own name does not lead to it: path/to/file.py:factory or hf:..."),
    ] = None,
    storage: Annotated[
        float, typer.Option(min=1e-3, help="GB/s at which one node reads a checkpoint.", metavar="GB/S")
    ] = 10.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Save the new plan in this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Plan again for what a failure left of the devices, and price the way there."""
    from costmodels.units import GB
    from planner import plan_file
    from planner.replan import replan as replanned
    from planner.report import replan as report

    if out is not None:
        plan_file.check_output(out, force=force)
    old = plan_file.read(plan)
    counts = {"node": 0, "device": 0}
    for text in lost:
        found = _LOST.fullmatch(text)
        if found is None:
            raise UsageError(f"--lost {text}: say how many of what, --lost 1 node or --lost 3 devices.")
        counts[found[2]] += int(found[1])
    with progress() as doing:
        new = replanned(
            old, lost_nodes=counts["node"], lost_devices=counts["device"], storage_bytes_per_s=storage * GB,
            hardware=hardware, model=model, progress=doing,
        )  # fmt: skip
    for warning in new.plan.warnings:
        say(f"warning: {warning}")
    if out is not None:
        plan_file.write(new.plan, out, force=force)
    color = sys.stdout.isatty()
    emit(report.to_json(new) if as_json else report.render(old, new, storage_bytes_per_s=storage * GB, color=color))
