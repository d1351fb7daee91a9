"""Cut a run of segments into pipeline stages, exactly.

    minimise    sum_i t(a_i, b_i) + max_i w(a_i, b_i)
    subject to  stages are consecutive, non-empty and cover all segments,
                stage i fits into memory: fits_i(a_i, b_i)

with ``t`` the seconds of one microbatch on segments [a, b) and ``w = (m - 1) t + d`` (see `costmodels.step`).

For a bound W on the maximum, the best sum is a dynamic programme over (stages, segments); `_least_sum`. Only values of
``w`` matter as bounds, and only those from the least feasible maximum (`_least_maximum`) up to where W alone plus the
unbounded sum is no better than the best found: with many equal blocks that is one or two values. Every
stage has its own feasibility because 1F1B's stage i holds ``min(p - i, m)`` microbatches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
"""[segments, segments + 1]: entry (a, b) is about a stage of segments [a, b)."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    cuts: tuple[int, ...]
    """Stage i holds segments [cuts[i], cuts[i + 1])."""
    step_s: float


def split_stages(t: Matrix, w: Matrix, fits: Sequence[Mask]) -> Split | None:
    """The optimum of the module docstring, or ``None`` when no cut fits. ``len(fits)`` is the number of stages."""
    if not _any_cut(fits):
        return None
    least = _least_maximum(w, fits)
    if not np.isfinite(least):
        return None
    unbounded = _least_sum(t, fits)
    assert unbounded is not None
    best: Split | None = None
    for bound in np.unique(w[(w >= least) & np.isfinite(w)]):
        if best is not None and bound + unbounded.step_s >= best.step_s:
            break
        found = _least_sum(t, [mask & (w <= bound) for mask in fits])
        if found is not None:
            worst = max(w[a, b] for a, b in pairwise(found.cuts))
            if best is None or found.step_s + worst < best.step_s:
                best = Split(cuts=found.cuts, step_s=float(found.step_s + worst))
    return best


def least_peak(peaks: Sequence[Matrix]) -> float:
    """Smallest possible maximum over the stages of ``peaks[i]`` (bytes of stage i)."""
    return _minimax(peaks)


def _any_cut(fits: Sequence[Mask]) -> bool:
    """Whether any cut fits: most candidates are too large, and booleans tell so ten times faster than seconds."""
    reach: Mask = np.arange(fits[0].shape[1]) == 0
    for mask in fits:
        reach = np.any(mask[reach[:-1]], axis=0)
    return bool(reach[-1])


def _least_maximum(w: Matrix, fits: Sequence[Mask]) -> float:
    return _minimax([np.where(mask, w, np.inf) for mask in fits])


def _minimax(costs: Sequence[Matrix]) -> float:
    reach = np.full(costs[0].shape[1], np.inf)
    reach[0] = 0.0
    for cost in costs:
        reach = np.maximum(reach[:-1, None], cost).min(axis=0)
    return float(reach[-1])


def _least_sum(t: Matrix, fits: Sequence[Mask]) -> Split | None:
    reach = np.full(t.shape[1], np.inf)
    reach[0] = 0.0
    origins = []
    for mask in fits:
        total = reach[:-1, None] + np.where(mask, t, np.inf)
        origins.append(total.argmin(axis=0))
        reach = total.min(axis=0)
    if not np.isfinite(reach[-1]):
        return None
    cuts = [t.shape[1] - 1]
    for origin in reversed(origins):
        cuts.append(int(origin[cuts[-1]]))
    return Split(cuts=tuple(reversed(cuts)), step_s=float(reach[-1]))
