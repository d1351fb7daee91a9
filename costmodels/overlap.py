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
    high: Array
    first: Array
    """Further expected seconds of the block that opens the run, whose transfer nothing precedes (or follows)."""
    hidden: Array
    """Computation that could hide the transfer of any block of the run, not only of its own."""

    def low_s(self, a: int, b: int) -> float:
        """Exposed seconds of blocks [a, b) if any of their computation could hide any of their transfers:
        ``max(0, sum c - sum t)``."""
        return max(0.0, float(self.high[a:b].sum() - self.hidden[a:b].sum()))

    def share(self, part: Array) -> Exposed:
        """The same for a part of every block's transfer, exposed in proportion."""
        total = float(self.high.sum())
        # A block without a transfer hides those of others, of each part its share of them all.
        ratio = np.divide(
            part, self.high, out=np.full_like(part, part.sum() / total if total else 0.0), where=self.high > 0
        )
        return Exposed(self.expected * ratio, self.high * ratio, self.first * ratio, self.hidden * ratio)


def exposed(communication_s: Array, compute_s: Array, *, compute_slowdown: float) -> Exposed:
    """Prefetching one block ahead hides a block's transfer behind one block of computation, which it slows down.

    While a transfer runs, computation takes ``compute_slowdown`` times as long (they share units and memory
    bandwidth), so of ``min(c, t)`` seconds side by side ``1 - 1 / compute_slowdown`` are lost: per block ``max(0, c -
    t) + (1 - 1 / slowdown) min(c, t)``. The first block's transfer has nothing before it, so the rest of ``min(c,
    t)`` is exposed too (for a gradient reduction read: the last block, nothing after it). ``high`` is ``c``: no
    overlap. As ``fully_shard`` prefetches (one block) and DDP reduces (buckets during backward).
    """
    hidden = np.minimum(communication_s, compute_s) / compute_slowdown
    return Exposed(expected=communication_s - hidden, high=communication_s, first=hidden, hidden=compute_s)
