"""Sums and maxima over all runs [a, b) of segments at once, as matrices over (a, b)."""

from __future__ import annotations

import numpy as np

from costmodels.overlap import Array
from planner.solvers.inter_op import Matrix


def range_sums(x: Array) -> Matrix:
    """(a, b) -> ``sum(x[a:b])``; infinite where b <= a."""
    total = np.concatenate([[0.0], np.cumsum(x)])
    sums: Matrix = total[None, :] - total[:-1, None]
    sums[_empty(len(x))] = np.inf
    return sums


def range_maxima(x: Array) -> Matrix:
    """(a, b) -> ``max(x[a:b])``; 0 where b <= a."""
    n = len(x)
    columns = np.concatenate([[0.0], x])
    maxima: Matrix = np.maximum.accumulate(np.where(_empty(n), 0.0, columns[None, :]), axis=1)
    return maxima


def range_second(x: Array) -> Matrix:
    """(a, b) -> the largest neighbour that follows another block inside [a, b); 0 for a single block."""
    inner = np.minimum(x[:-1], x[1:]) if len(x) > 1 else np.zeros(0)
    maxima = np.zeros((len(x), len(x) + 1))
    if len(x) > 1:
        maxima[:-1, 1:] = range_maxima(inner)
    return maxima


def _empty(n: int) -> np.ndarray:
    return np.arange(n + 1)[None, :] <= np.arange(n)[:, None]
