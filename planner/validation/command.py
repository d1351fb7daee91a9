"""``meshwright validate`` without its command line: which rows, their prices, and what is printed or written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from planner.errors import UnknownNameError, UsageError
from planner.validation.case_files import CasesError, load_cases
from planner.validation.cases import Case
from planner.validation.facts import shipped_cases
from planner.validation.outcomes import Outcome, entries, price_all
from planner.validation.statistics import Summary, summarise


def select(files: Sequence[Path], hardware: Iterable[str], *, core: bool) -> tuple[Case, ...]:
    """Rows of ``files``, or those that come with Meshwright; only of some ``hardware`` and the ``core``, where asked.

    Raises `CasesError` for a file that breaks the format, `UnknownNameError` for hardware that no row has.
    """
    cases = load_cases(files) if files else shipped_cases()
    if not cases:
        raise CasesError(f"{', '.join(map(str, files))}: no row in it; see examples/runs.json for what a row is")
    wanted = set(hardware)
    known = {case.hardware for case in cases}
    for name in sorted(wanted - known):
        raise UnknownNameError("hardware of a measured row", name, known)
    return tuple(case for case in cases if (not wanted or case.hardware in wanted) and (case.core or not core))


def price_cases(cases: Iterable[Case], *, calibrated: bool, progress: Callable[[str], None]) -> tuple[Outcome, ...]:
    """Price every row, ``calibrated`` or with the datasheets' figures alone."""
    from planner.validation.pricing import price

    return price_all(cases, lambda case: price(case, calibrated=calibrated), progress)


def left_out(outcomes: Sequence[Outcome], progress: Callable[[str], None]) -> tuple[Outcome, ...]:
    """Calibrated outcomes, shipped rows predicted without their source: see `planner.validation.observations`."""
    from planner.validation import observations
    from planner.validation.pricing import price_with

    return observations.left_out(outcomes, price_with, progress)


def gate(summary: Summary) -> tuple[str, float | None]:
    """What a limit on the median error is held against, in words, and that error: the headline's dense models; where
    there are none, those of all scored rows; where there are none either, models with experts."""
    for kind in ("dense", "moe"):
        for name, found in (("headline", summary.headline), ("scored rows", summary.all_scored)):
            if kind in found:
                return f"{name}, {kind} models", found[kind].median
    return "scored rows", None


def to_json(outcomes: Iterable[Outcome], summary: Summary) -> str:
    """``{"rows": [...], "summary": {...}}``: rows as `planner.validation.outcomes.entries` has them."""
    content: dict[str, Any] = {
        "rows": [entry for outcome in outcomes for entry in entries(outcome)],
        "summary": dataclasses.asdict(summary),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def calibration_section(outcomes: Iterable[Outcome], summary: Summary, progress: Callable[[str], None]) -> str:
    """What the page says of calibration; prices the rows once more, with the datasheets' figures alone."""
    from planner.calibration.shipped import shipped
    from planner.validation.calibration_page import section
    from planner.validation.observations import left_out_by_repository

    found = tuple(outcomes)
    plain = summarise(price_cases([outcome.case for outcome in found], calibrated=False, progress=progress))
    return section(shipped(), plain, summary, summarise(left_out_by_repository(found)))


def write_page(
    directory: Path, outcomes: Sequence[Outcome], summary: Summary, *, date: str, command: str, calibration: str = ""
) -> Path:
    """Write the page on accuracy and its picture in ``directory``, over those that are there; path of the page.

    Raises `UsageError` where the directory cannot be written, `MissingPackageError` without matplotlib.
    """
    from planner.validation import page

    picture = page.render_picture(outcomes)
    text = page.render_page(outcomes, summary, date=date, command=command, calibration=calibration)
    path = directory / page.PAGE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        (directory / page.PICTURE).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{directory}: the page cannot be written there: {error}") from error
    return path
