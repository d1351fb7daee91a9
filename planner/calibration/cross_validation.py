"""Constants that know nothing of a source: with them its rows are predicted as a new run elsewhere would be.

Rows of one publication or repository share authors, machines and scripts, so leaving out single rows would flatter.
The other sources' rows need not be priced again: how their seconds change with the constants follows from the classes
that they were priced with, as in `planner.calibration.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from planner.calibration.fit import Design, Observation
from planner.calibration.scopes import prior_sd


def constants_without(
    observations: Sequence[Observation], sd_of: Callable[[str], float] = prior_sd
) -> dict[str, dict[str, float]]:
    """For every source the constants by name, fitted to the rows of all other sources."""
    design = Design(observations, sd_of)
    found: dict[str, dict[str, float]] = {}
    for source in sorted({row.source for row in observations}):
        others = np.array([float(row.source != source) for row in observations])
        theta = design.solve(design.weights * others)
        found[source] = dict(zip(design.names, np.exp(theta).tolist(), strict=True))
    return found


def seconds_without(observations: Sequence[Observation], sd_of: Callable[[str], float] = prior_sd) -> dict[str, float]:
    """Every row's predicted seconds by id, with the constants of `constants_without`, in closed form: nothing is priced
    again, so what hides behind what stays as it is."""
    design = Design(observations, sd_of)
    found: dict[str, float] = {}
    for source in sorted({row.source for row in observations}):
        others = np.array([float(row.source != source) for row in observations])
        log_predicted, _ = design.at(design.solve(design.weights * others))
        found |= {
            row.id: float(np.exp(log_s))
            for row, log_s in zip(observations, log_predicted, strict=True)
            if row.source == source
        }
    return found
