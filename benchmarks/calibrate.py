"""Fit the constants that Meshwright ships: ``python -m benchmarks.calibrate [DATE]``.

Prices every scored row that ships, fits, prices again with what was found, and writes
``planner/calibration/data/constants.toml``. Then says how far off the rows are: with all constants, and with those
that do not know a row's source.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import planner.calibration
from planner.calibration.shipped import FILE, write
from planner.validation.facts import shipped_cases
from planner.validation.observations import calibrate, left_out
from planner.validation.outcomes import Outcome, price_all
from planner.validation.pricing import price_with
from planner.validation.statistics import summarise

PATH = Path(planner.calibration.__file__).parent / "data" / FILE


def main() -> None:
    """Fit, write, and say how well it went."""
    date = sys.argv[1] if len(sys.argv) > 1 else datetime.date.today().isoformat()
    cases = [case for case in shipped_cases() if case.scored]
    fitted, rows = calibrate(cases, price_with)
    sources = {row.source for row in rows}
    PATH.write_text(write(fitted.constants, date=date, rows=len(rows), sources=len(sources)), encoding="utf-8")
    print(f"{len(fitted.constants)} constants of {len(rows)} rows of {len(sources)} sources in {PATH}")
    outcomes = price_all(cases, lambda case: price_with(case, fitted.values))
    say("datasheets", price_all(cases, lambda case: price_with(case, {})))
    say("in-sample", outcomes)
    say("left out by source", left_out(outcomes, price_with))


def say(name: str, outcomes: tuple[Outcome, ...]) -> None:
    """Print the headline of some outcomes."""
    for kind, found in summarise(outcomes).headline.items():
        errors = f"median {found.median:.1%}, 90 % {found.p90:.1%}, bias {found.bias:+.1%}"
        print(f"{name:>18} {kind:>6}: {found.priced} rows, {errors}")


if __name__ == "__main__":
    main()
