"""What a user's own runs tell, as tables, as JSON, and as a profile."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hardware_profiles.load import load_profile
from hardware_profiles.schema import Profile
from planner.calibration.profile import profile_text, refine
from planner.errors import UsageError
from planner.report.columns import columns, text
from planner.validation.outcomes import Outcome
from planner.validation.own_runs import FIGURES, MIN_RUNS, Own, OwnFit
from planner.validation.report import percent, seconds, signed


def render(found: OwnFit, *, width: int, color: bool = False) -> str:
    """Figures with their factors, then every run before and after; equal values give equal text."""
    sections: list[RenderableType] = [
        Text(f"{found.profile}: factors on the seconds that its figures promise"),
        _figures(found),
        _runs(found),
        Text(f"median error {_errors(found.before)} with the constants that ship, {_errors(found.after)} with these"),
    ]
    return text(sections, width=width, color=color)


def to_json(found: OwnFit) -> str:
    """``{"profile": ..., "figures": [...], "runs": [...]}``; errors are ``(predicted - measured) / measured``."""
    content = {
        "profile": found.profile,
        "figures": [
            {
                "figure": own.figure, "shipped": own.shipped, "fitted": own.fitted, "sd": own.sd, "runs": own.runs,
                "informed": own.informed,
            }
            for own in found.figures
        ],
        "runs": [
            {
                "id": before.case.id, "measured_s": before.measured_s, "before": before.time_error,
                "after": after.time_error,
            }
            for before, after in zip(found.before, found.after, strict=True)
        ],
    }  # fmt: skip
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_profile(found: OwnFit, path: Path, *, name: str, runs: Path, date: str) -> tuple[str, ...]:
    """Write the profile ``name`` with the fitted figures to ``path``; paths of figures that are cut off at 1.

    Raises `UsageError` where the file cannot be written.
    """
    base = load_profile(found.profile)
    assert isinstance(base, Profile), found.profile
    source = f"Fitted to {len(found.after)} runs of {runs.name}, {date} (meshwright calibrate)"
    refined, cut = refine(base, {own.figure: own.refinement(source) for own in found.figures}, name=name)
    head = (
        f"{found.profile}, its fractions divided by how much longer {len(found.after)} runs of {runs.name} took.",
        f"Written {date} by meshwright calibrate: median error of the runs {_errors(found.after)}.",
    )
    try:
        path.write_text(profile_text(refined, base, head), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: the profile cannot be written: {error}") from error
    return cut


def _figures(found: OwnFit) -> Table:
    table = columns(">shipped", ">fitted", ">+-", ">runs", "figure")
    for own in found.figures:
        table.add_row(
            f"{own.shipped:.3f}", f"{own.fitted:.3f}", f"{own.sd:.3f}", str(own.runs), Text(_words(own))
        )  # fmt: skip
    return table


def _words(own: Own) -> str:
    words = f"{FIGURES[own.figure]} ({own.figure})"
    return words if own.informed else f"{words}: as shipped, {MIN_RUNS} runs are needed to tell"


def _runs(found: OwnFit) -> Table:
    table = columns(">measured", ">before", ">after", "run")
    for before, after in zip(found.before, found.after, strict=True):
        table.add_row(
            seconds(before.measured_s), signed(before.time_error), signed(after.time_error), Text(before.case.id)
        )
    return table


def _errors(outcomes: tuple[Outcome, ...]) -> str:
    return percent(median(abs(error) for outcome in outcomes if (error := outcome.time_error) is not None))
