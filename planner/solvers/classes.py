"""A step's seconds by class of operation: what a factor of calibration acts on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from costmodels.overlap import Exposed
from planner.solvers.data_parallel import stage_exposed_s
from planner.solvers.passes import PassSeconds
from planner.solvers.segment_costs import SegmentCosts

CLASSES = (
    "gemm", "attention", "memory_bound", "host", "tp", "cp", "ep", "dp", "optimizer", "step",
)  # fmt: skip
"""What a factor of calibration may apply to."""


def class_seconds(costs: SegmentCosts, chunks: Sequence[tuple[int, int]], bubble_s: float) -> dict[str, float]:
    """Seconds of one rank's step by class; they add up to the step.

    Args:
        chunks: (first segment, end) of every stage that the rank holds.
        bubble_s: waiting for other ranks, shared out in proportion to what fills a microbatch.
    """
    c, policy = costs.candidate, costs.candidate.recompute
    found = dict.fromkeys(CLASSES, 0.0)
    per_microbatch, per_step = costs.data_parallel
    for a, b in chunks:
        for i in range(a, b):
            price = costs.prices[costs.setting.block_of[i]]
            for times, seconds in (
                (1.0, price.forward),
                (1.0, price.backward),
                (costs.recomputed[i], price.again[policy]),
            ):
                for name, value in _by_class(seconds).items():
                    found[name] += times * value
        found["memory_bound"] += float(costs.accumulate_s[a:b].sum())
        found["step"] += sum(float(exposed_s[a:b].sum()) for exposed_s in costs.offload_s)
    _add_transfers(found, per_microbatch.values(), chunks)
    busy = sum(found.values())
    stretch = c.num_microbatches + (bubble_s / busy if busy else 0.0)
    found = {name: seconds * stretch for name, seconds in found.items()}
    _add_transfers(found, per_step.values(), chunks, once=True)
    found["dp"] += costs.tied_s
    for a, b in chunks:
        found["dp"] += float(costs.replicated_s[a:b].sum())
        found["optimizer"] += float((costs.clip_s + costs.optimizer_s)[a:b].sum())
    return found


def _add_transfers(
    found: dict[str, float], transfers: Iterable[Exposed], chunks: Sequence[tuple[int, int]], *, once: bool = False
) -> None:
    """Add exposed data-parallel transfers to what they run beside, those of a step (``once``) as one run.

    Where a transfer is the longer of the two, it takes its whole length, however long the computation: what is beside
    it counts as the transfer's.
    """
    beside_s = 0.0
    dp_s = 0.0
    for e in transfers:
        longer = np.where(e.high > e.hidden, e.high - e.expected, 0.0)
        for i, (a, b) in enumerate(chunks):
            opens = i == 0 or not once
            # Of a run's first transfer nothing is hidden.
            beside_s += float(longer[a + opens : b].sum())
            dp_s += stage_exposed_s(e, a, b, opens=opens)
    busy_s = sum(found.values())
    share = 1 - beside_s / busy_s if busy_s else 1.0
    for name in found:
        found[name] *= share
    found["dp"] += dp_s + beside_s


def _by_class(seconds: PassSeconds) -> dict[str, float]:
    """A pass that waits for the host takes as long as the host does, whatever its kernels take."""
    waits = seconds.host > seconds.held
    return {
        "host": seconds.compute if waits else seconds.held,
        "gemm": 0.0 if waits else seconds.gemm,
        "attention": 0.0 if waits else seconds.attention,
        "memory_bound": 0.0 if waits else seconds.memory_bound,
        "tp": seconds.collectives,
        "cp": seconds.context,
        "ep": seconds.experts,
    }
