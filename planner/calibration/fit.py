"""Constants from measured steps: a least-squares fit in logarithms with priors, robust to rows that nobody can explain.

A run whose classes take ``c_k`` seconds without calibration is predicted to take

    sum_k c_k prod_{j of k} exp(theta_j)

with ``theta`` the logarithms of the constants. Found is the least

    sum_i w_i rho(log measured_i - log predicted_i) / NOISE_SD**2 + sum_j theta_j**2 / sd_j**2

where ``w_i = 1 / sqrt(rows of i's group)``, so that a sweep of many runs does not drown single ones, ``rho`` is Huber's
loss (squares up to `KNEE`, beyond it linear), and ``sd_j`` the prior of `planner.calibration.scopes`. Gauss-Newton
steps with the weights of Huber's loss find it; the derivative by ``theta_j`` is the share of the seconds that ``j``
multiplies. Nothing is random: equal rows give equal constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.calibration.scopes import prior_sd

Array = npt.NDArray[np.float64]

NOISE_SD = 0.15
"""Of a measured step around the best prediction that constants can give, as a part of it: clusters and software that a
source does not describe."""
KNEE = 0.10
"""Residuals beyond this part of the step pull with constant force."""
INFORMING_SHARE = 0.05
"""Share of a row's seconds from which on the row says something about a constant."""

_TOLERANCE = 1e-7
_MAX_ROUNDS = 500


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One measured step, and its prediction by class."""

    id: str
    source: str
    """Publication or repository: what is left out at once."""
    group: str
    """The sweep that the row is of."""
    measured_s: float
    seconds: Mapping[str, float]
    """Predicted without the constants, by class."""
    constants: Mapping[str, tuple[str, ...]]
    """Names of the constants on each class."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A fitted factor. ``sd`` is its standard error, ``rows`` of ``sources`` publications inform it."""

    name: str
    value: float
    sd: float
    rows: int
    sources: int


@dataclass(frozen=True)
class Fit:
    """What was found; ``residuals`` are ``log(measured / predicted)`` by row."""

    constants: tuple[Constant, ...]
    residuals: Mapping[str, float]

    @property
    def values(self) -> dict[str, float]:
        """The factors by name."""
        return {constant.name: constant.value for constant in self.constants}


def fit(
    observations: Sequence[Observation], sd_of: Callable[[str], float] = prior_sd, *, noise_sd: float = NOISE_SD
) -> Fit:
    """Constants that explain the rows best (module docstring); ``sd_of`` is the prior by a constant's name,
    ``noise_sd`` stands for `NOISE_SD`."""
    design = Design(observations, sd_of, noise_sd)
    theta = design.solve(design.weights)
    log_predicted, shares = design.at(theta)
    residuals = design.log_measured - log_predicted
    sd = np.sqrt(np.diag(np.linalg.inv(design.curvature(shares, residuals, design.weights))))
    informs = shares > INFORMING_SHARE
    constants = tuple(
        Constant(
            name=name, value=float(np.exp(theta[j])), sd=float(np.exp(theta[j]) * sd[j]), rows=int(informs[:, j].sum()),
            sources=len({row.source for row, told in zip(observations, informs[:, j], strict=True) if told}),
        )
        for j, name in enumerate(design.names)
    )  # fmt: skip
    return Fit(constants, {row.id: float(r) for row, r in zip(observations, residuals, strict=True)})


class Design:
    """Observations as arrays: rows x classes of seconds, and which constant multiplies which entry."""

    def __init__(
        self, observations: Sequence[Observation], sd_of: Callable[[str], float], noise_sd: float = NOISE_SD
    ) -> None:
        self.noise_sd = noise_sd
        self.names = tuple(sorted({n for row in observations for of in row.constants.values() for n in of}))
        kinds = sorted({kind for row in observations for kind in row.seconds})
        column = {name: j for j, name in enumerate(self.names)}
        self.seconds = np.array([[row.seconds.get(kind, 0.0) for kind in kinds] for row in observations], dtype=float)
        members = [
            (i, k, column[name])
            for i, row in enumerate(observations)
            for k, kind in enumerate(kinds)
            for name in row.constants.get(kind, ())
        ]
        self._row, self._kind, self._constant = np.array(members, dtype=np.intp).reshape(-1, 3).T
        self.log_measured: Array = np.log([row.measured_s for row in observations])
        sizes = Counter((row.source, row.group) for row in observations)
        self.weights: Array = np.array([1 / np.sqrt(sizes[row.source, row.group]) for row in observations])
        self.precision: Array = np.array([1 / sd_of(name) ** 2 for name in self.names])

    def at(self, theta: Array) -> tuple[Array, Array]:
        """Per row the logarithm of the predicted seconds, and (rows x constants) the share that each multiplies."""
        num_rows, num_kinds = self.seconds.shape
        entry = self._row * num_kinds + self._kind
        gains = np.bincount(entry, theta[self._constant], num_rows * num_kinds).reshape(num_rows, num_kinds)
        seconds = self.seconds * np.exp(gains)
        total = seconds.sum(axis=1)
        part = (seconds / total[:, None])[self._row, self._kind]
        place = self._row * len(self.names) + self._constant
        shares: Array = np.bincount(place, part, num_rows * len(self.names)).astype(np.float64)
        return np.log(total), shares.reshape(num_rows, len(self.names))

    def curvature(self, shares: Array, residuals: Array, weights: Array) -> Array:
        """Inverse covariance of the constants' logarithms around these residuals."""
        pull = self._pull(residuals, weights)
        return np.asarray(shares.T @ (pull[:, None] * shares) + np.diag(self.precision))

    def solve(self, weights: Array) -> Array:
        """Logarithms of the constants; rows of weight 0 have no say."""
        theta: Array = np.zeros(len(self.names))
        for _ in range(_MAX_ROUNDS):
            log_predicted, shares = self.at(theta)
            residuals = self.log_measured - log_predicted
            slope = shares.T @ (self._pull(residuals, weights) * residuals) - self.precision * theta
            step = np.linalg.solve(self.curvature(shares, residuals, weights), slope)
            theta = theta + step
            if np.max(np.abs(step), initial=0.0) < _TOLERANCE:
                return theta
        raise ArithmeticError(f"no constants after {_MAX_ROUNDS} rounds")

    def _pull(self, residuals: Array, weights: Array) -> Array:
        """Weights under which squares are Huber's loss."""
        flat: Any = weights / np.maximum(1.0, np.abs(residuals) / KNEE) / self.noise_sd**2
        return np.asarray(flat)
