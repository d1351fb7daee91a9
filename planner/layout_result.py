"""What `planner.layout_planning.best_layouts` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.plan import BlockLayout


@dataclass(frozen=True, kw_only=True)
class BlockParams:
    """How the parameters of some calls of a block lie at rest."""

    layout: BlockLayout
    params: Mapping[str, str]
    """By FQN, with numbers as in ``layout.modules``: placements, outer axis first."""


@dataclass(frozen=True, kw_only=True)
class LayoutResult:
    """Layouts of every operation of a model over a mesh."""

    model: str
    hardware: str
    mesh: Mapping[str, int]
    batch: int
    seq_len: int
    seconds: float
    """One forward and backward pass over the batch and the optimizer's step, nothing hidden behind anything."""
    bound_s: float
    """No layouts that fit take less."""
    peak_bytes: float
    limit_bytes: float
    blocks: tuple[BlockParams, ...]
    """In order of execution; calls of a block that lie alike are one entry."""
    tradeoff: tuple[tuple[float, float], ...]
    """(seconds, peak bytes) of layouts seen of which none is both faster and leaner than another, fastest first."""
    warnings: tuple[str, ...]

    @property
    def gap(self) -> float:
        """``seconds / bound - 1``; 0 is proven best."""
        return max(0.0, self.seconds / self.bound_s - 1.0)
