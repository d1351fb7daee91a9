"""How ranks run an operation together, by the name that options carry (docs/layouts.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.capture.program import Call
from planner.graph import Op
from planner.runtime.implementations import attention, experts, halo, loss, ring, statistics
from planner.runtime.site import Run, Site

Maker = Callable[[Sequence[Op], Sequence[Call], Site, Sequence[str]], Run]
"""From the operations of a node, their calls, where they run and the name of what each axis does."""

IMPLEMENTATIONS: dict[str, Maker] = {
    "context_all_gather": attention.context_all_gather,
    "ring": ring.ring,
    "statistics": statistics.statistics,
    "sync": statistics.sync,
    "halo": halo.halo,
    "experts": experts.experts,
    "loss": loss.cross_entropy,
}
