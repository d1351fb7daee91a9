"""What a pipeline schedule is: for each rank the order of its work, and on which rank a stage of a microbatch runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from costmodels.schedules.actions import Orders, Placement
from costmodels.schedules.graph import Graph, build


@dataclass(frozen=True, eq=False)
class Schedule:
    """The orders of all ranks. Stages are virtual: a rank holds several where a schedule uses chunks or directions."""

    name: str
    orders: Orders
    placements: tuple[Placement, ...]
    """One per direction; microbatch ``i`` runs in direction ``i % len(placements)``."""
    num_microbatches: int

    @property
    def num_ranks(self) -> int:
        return len(self.orders)

    @property
    def num_stages(self) -> int:
        return len(self.placements[0])

    @property
    def copies(self) -> int:
        """How often the pipeline holds every stage's parameters: twice where microbatches run in both directions."""
        return len(self.placements)

    def rank_of(self, stage: int, microbatch: int) -> int:
        """Rank that runs the stage for the microbatch."""
        return self.placements[microbatch % self.copies][stage]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Stages whose parameters the rank holds, one entry per copy, ascending."""
        return tuple(sorted(stage for ranks in self.placements for stage, r in enumerate(ranks) if r == rank))

    @cached_property
    def graph(self) -> Graph:
        """Dependencies, found once and priced as often as wanted.

        Raises:
            DeadlockError: ranks wait for each other.
        """
        return build(self.orders, self.placements)
