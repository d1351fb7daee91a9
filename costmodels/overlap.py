"""Communication that runs beside computation: how much of it is left exposed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Exposed:
    """Exposed seconds of each of a run of blocks: expected, with perfect overlap, with none."""

    expected: Array
    low: Array
    high: Array
    first: Array
    """Further expected seconds of the block that opens the run, whose transfer nothing precedes (or follows)."""


def exposed(communication_s: Array, compute_s: Array) -> Exposed:
    """Prefetching one block ahead hides a block's transfer behind one block of computation.

    Per block ``max(0, c - t)``; the first block's transfer has nothing before it, so ``min(c, t)`` of it is exposed
    too (for a gradient reduction read: the last block, nothing after it). ``high`` is ``c``: no overlap. ``low`` is
    the same ``max(0, c - t)`` without the first block's share. As ``fully_shard`` prefetches (one block) and DDP
    reduces (buckets during backward).
    """
    hidden = np.minimum(communication_s, compute_s)
    rest = communication_s - hidden
    return Exposed(expected=rest, low=rest, high=communication_s, first=hidden)
