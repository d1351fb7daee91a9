"""Memory over time as pieces: from one time point to another, an amount per strategy.

A time point counts only while it can be the one that is over the limit, so times are compressed (`kept_times`) and
profiles stay short. Amounts that are integers stay exact (below 2^53).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.intp]
Profile = NDArray[np.float64]
"""Held bytes (or whatever usage counts) per time point."""


class Pieces(NamedTuple):
    """``amounts[p, strategy]`` are held at time points ``starts[p] <= t < ends[p]``."""

    starts: Times
    ends: Times
    amounts: NDArray[np.float64]


def kept_times(starts: Sequence[int], ends: Sequence[int]) -> Times:
    """Points where something begins and the next change is an end: no other point holds more than all of these."""
    begin, end = set(starts), set(ends)
    points = sorted(begin | end)
    kept = [t for t, following in pairwise(points) if t in begin and following in end]
    return np.array(kept, dtype=np.intp)


def combine(parts: Sequence[Pieces]) -> Pieces:
    """Sum of parts that may overlap, as disjoint pieces in order of time."""
    starts = np.concatenate([p.starts for p in parts])
    ends = np.concatenate([p.ends for p in parts])
    amounts = np.concatenate([p.amounts for p in parts])
    if len(starts) <= 1:
        return Pieces(starts, ends, amounts)
    times = np.concatenate([starts, ends])
    order = np.argsort(times, kind="stable")
    times = times[order]
    first = np.flatnonzero(np.append(True, times[1:] != times[:-1]))
    points = times[first]
    levels = np.add.reduceat(np.concatenate([amounts, -amounts])[order], first, axis=0).cumsum(axis=0)[:-1]
    fresh = np.append(True, (levels[1:] != levels[:-1]).any(axis=1))
    begin = np.flatnonzero(fresh)
    return Pieces(points[:-1][begin], points[np.append(begin[1:], len(levels))], levels[begin])


def profile(length: int, starts: Times, ends: Times, amounts: NDArray[np.float64]) -> Profile:
    """Sum over pieces of one amount each, per time point."""
    changes = np.zeros(length + 1)
    np.add.at(changes, starts, amounts)
    np.add.at(changes, ends, -amounts)
    return changes.cumsum()[:-1]


def lifted(held: Profile, starts: Times, ends: Times, amounts: NDArray[np.float64]) -> Profile:
    """A profile with pieces added."""
    if not amounts.any():
        return held
    if len(starts) > 8:
        return held + profile(len(held), starts, ends, amounts)
    held = held.copy()
    for start, end, amount in zip(starts, ends, amounts, strict=True):
        held[start:end] += amount
    return held


def least_within(values: Profile, starts: Times, ends: Times) -> Profile:
    """Least of ``values[start:end]`` for each pair; no range is empty."""
    padded = np.append(values, np.inf)
    return np.minimum.reduceat(padded, np.stack([starts, ends], axis=1).ravel())[::2]
