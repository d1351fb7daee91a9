"""Fits that a few wrong measurements do not move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]

SIGMA = 1.4826
"""Median absolute deviation -> standard deviation of a normal distribution."""

_REPEAT_LIMIT = 3.5
"""Deviations beyond which a repeat is an outlier (Iglewicz & Hoaglin 1993)."""

_SAMPLE_LIMIT = 5.0
_LEAST_REJECTED = log(1.5)
"""A sample is no outlier while the model is within this factor."""

_SOFT = 0.15
"""Relative error from which on a sample's pull grows only linearly."""


def settled(seconds: Sequence[float]) -> list[float]:
    """The repeats that are no outliers: within 3.5 median absolute deviations of the median, on a logarithmic scale."""
    logs = [log(value) for value in seconds]
    middle = median(logs)
    spread = SIGMA * median(abs(value - middle) for value in logs)
    if spread == 0:
        return [value for value, at in zip(seconds, logs, strict=True) if at == middle] or list(seconds)
    return [value for value, at in zip(seconds, logs, strict=True) if abs(at - middle) <= _REPEAT_LIMIT * spread]


def typical(seconds: Sequence[float]) -> float:
    """Median of the repeats that are no outliers."""
    return median(settled(seconds))


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A positive unknown: where to start, and between which bounds it may lie."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ClassError:
    """How well one class of operations is described: errors are ``|predicted / measured - 1|`` of what was kept."""

    name: str
    num_samples: int
    num_rejected: int
    median: float
    p90: float

    def __str__(self) -> str:
        rejected = f", {self.num_rejected} rejected" if self.num_rejected else ""
        return f"{self.name}: median {self.median:.0%}, p90 {self.p90:.0%} of {self.num_samples} samples{rejected}"


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Values of the unknowns, and per sample the prediction and whether it counted."""

    values: dict[str, float]
    predicted: Array
    measured: Array
    kept: NDArray[np.bool_]
    cost: float
    """Robust mean square of the logarithmic errors of what was kept, and of rejected samples at the limit."""

    def error(self, name: str, chosen: NDArray[np.bool_] | None = None) -> ClassError:
        """Errors of the ``chosen`` samples (all)."""
        mask = np.ones(len(self.measured), dtype=bool) if chosen is None else chosen
        kept = mask & self.kept
        errors = np.abs(self.predicted[kept] / self.measured[kept] - 1)
        return ClassError(
            name=name,
            num_samples=int(mask.sum()),
            num_rejected=int((mask & ~self.kept).sum()),
            median=float(np.median(errors)) if errors.size else float("nan"),
            p90=float(np.quantile(errors, 0.9)) if errors.size else float("nan"),
        )


def solve(
    predict: Callable[[dict[str, float]], Sequence[float]], measured: Sequence[float], parameters: Sequence[Parameter]
) -> Solution:
    """Values of the unknowns with the least soft-L1 error of ``log(predicted / measured)``; a re-fit without outliers.

    ``predict`` gives the seconds of every sample from the unknowns by name. Unknowns move on a logarithmic scale. A
    sample is an outlier beyond 5 robust deviations of the median error, and more than a factor of 1.5.
    """
    times = np.asarray(measured, dtype=float)
    low, high = (np.log([getattr(p, bound) for p in parameters]) for bound in ("low", "high"))
    start = np.clip(np.log([p.start for p in parameters]), low + 1e-9, high - 1e-9)

    def values(point: Array) -> dict[str, float]:
        return {p.name: float(np.exp(x)) for p, x in zip(parameters, point, strict=True)}

    def errors(point: Array) -> Array:
        return np.asarray(np.log(np.asarray(predict(values(point))) / times))

    kept = np.ones(len(times), dtype=bool)
    point = start
    for attempt in range(2):
        chosen = kept

        def residuals(x: Array, chosen: NDArray[np.bool_] = chosen) -> Array:
            return errors(x)[chosen]

        point = least_squares(
            residuals,
            point,
            bounds=(low, high),
            loss="soft_l1",
            f_scale=_SOFT,
            diff_step=[1e-4] * len(point),
            max_nfev=100,
        ).x
        if attempt == 0:
            all_errors = errors(point)
            middle = np.median(all_errors)
            spread = SIGMA * float(np.median(np.abs(all_errors - middle)))
            kept = np.abs(all_errors - middle) <= max(_SAMPLE_LIMIT * spread, _LEAST_REJECTED)
            if kept.all():
                break
    final = errors(point)
    # A rejected sample still counts when models are compared: a model must not win by rejecting what it cannot explain.
    softened = 2 * (np.sqrt(1 + (final / _SOFT) ** 2) - 1)
    return Solution(
        values=values(point),
        predicted=times * np.exp(final),
        measured=times,
        kept=kept,
        cost=float(np.mean(softened)),
    )
