"""Seconds to price one given layout: `python -m benchmarks.pricing`.

Prices the rows that ship with the package twice: the first time traces every model family, the second finds all graphs
traced, so that it says what one layout of a known model costs. Prints a Markdown table, and exits with 1 when the
limit is broken.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import numpy as np

from planner.errors import MeshwrightError
from planner.validation.cases import Case
from planner.validation.facts import shipped_cases
from planner.validation.pricing import price

LIMIT_S = 0.05
"""One layout of a captured model, median."""


def seconds_each(cases: Iterable[Case]) -> list[float]:
    """CPU seconds of every row that can be priced."""
    found = []
    for case in cases:
        started = time.process_time()
        try:
            price(case)
        except MeshwrightError:
            continue
        found.append(time.process_time() - started)
    return found


def main() -> int:
    """Measure and print the table."""
    cases = [case for case in shipped_cases() if case.scored]
    first, again = seconds_each(cases), seconds_each(cases)
    print("| layouts | CPU s, tracing included | CPU ms each, traced: median | 90th percentile | most |")
    print("|--:|--:|--:|--:|--:|")
    median, ninth, most = (1e3 * float(np.percentile(again, q)) for q in (50, 90, 100))
    print(f"| {len(again)} | {sum(first):.0f} | {median:.0f} | {ninth:.0f} | {most:.0f} |")
    return int(median > 1e3 * LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
