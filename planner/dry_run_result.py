"""What a dry run found: every rank that was run, beside what its plan predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ComparedTraffic:
    """All collectives of one kind over one axis in one step of one rank."""

    axis: str
    kind: str
    count: int
    num_bytes: int
    predicted_count: int
    predicted_bytes: int

    @property
    def difference(self) -> float:
        """Relative, of counts or of bytes, whichever is larger; infinite where nothing was predicted."""
        return max(relative(self.count, self.predicted_count), relative(self.num_bytes, self.predicted_bytes))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where a difference above the threshold lies."""

    what: str
    """``peak``, or a collective: ``tp all_gather``."""
    fqn: str
    found: int
    predicted: int | None
    """Bytes; ``None`` where the plan says nothing of this module."""


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """One rank's step."""

    rank: int
    represents: tuple[int, ...]
    """Ranks that run the same step, this one included."""
    why: str
    """They are equal."""
    peak_bytes: int
    predicted_peak_bytes: int
    memory: Mapping[str, int]
    """Bytes at the peak by category (`planner.runtime.dry_run.memory`)."""
    predicted_memory: Mapping[str, int]
    """The plan's parts, which are cut otherwise."""
    collectives: tuple[ComparedTraffic, ...]
    differences: tuple[Difference, ...]
    cpu_s: float
    """To build the rank's model and run its step."""
    host_bytes: int
    """Most memory of the process that did it."""

    @property
    def largest(self) -> float:
        """Largest relative difference of anything."""
        return max([relative(self.peak_bytes, self.predicted_peak_bytes), *(c.difference for c in self.collectives)])


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A plan, executed at its full size without devices."""

    model: str
    world_size: int
    num_microbatches: int
    run_microbatches: int
    """Of them, how many were run; further ones repeat what the ones before did."""
    max_difference: float
    ranks: tuple[RankResult, ...]

    @property
    def ok(self) -> bool:
        """No rank differs more than allowed."""
        return all(rank.largest <= self.max_difference for rank in self.ranks)


def relative(found: float, predicted: float) -> float:
    """Difference relative to what was predicted."""
    if found == predicted:
        return 0.0
    return abs(found / predicted - 1) if predicted else float("inf")
