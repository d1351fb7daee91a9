"""Layouts of a model's segments, and a solution with its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from planner.solvers.block_layout.problem import BlockProblem


@dataclass(frozen=True, eq=False)
class PlacedSegment:
    """A segment with its layouts."""

    problem: BlockProblem
    choice: tuple[int, ...]
    """Strategy of every node of the problem."""

    @property
    def seconds(self) -> float:
        return self.problem.problem.cost(self.choice)

    @property
    def borders(self) -> tuple[int | None, int]:
        """Strategies of entry and exit."""
        entry = self.problem.entry
        return None if entry is None else self.choice[entry], self.choice[self.problem.exit]

    @cached_property
    def kept(self) -> tuple[float, float]:
        """Bytes between the passes: of parameters with their states, and of activations."""
        states = activations = 0.0
        for choice, held, s in zip(self.problem.choices, self.problem.held, self.choice, strict=True):
            if choice.kind == "param":
                states += float(held[s])
            else:
                activations += float(held[s])
        return states, activations

    @cached_property
    def peak_bytes(self) -> float:
        """Most at any time point of the segment's own passes."""
        return self.problem.problem.peak(self.choice)


@dataclass(frozen=True, eq=False)
class ModelLayout:
    """Layouts of all segments."""

    segments: tuple[PlacedSegment, ...]

    @cached_property
    def seconds(self) -> float:
        """One forward and backward pass and the optimizer's step, nothing hidden behind anything."""
        return float(sum(segment.seconds for segment in self.segments))

    @cached_property
    def held_bytes(self) -> float:
        """When the forward pass is over."""
        return float(sum(sum(segment.kept) for segment in self.segments))

    @cached_property
    def peak_bytes(self) -> float:
        """All states, the activations of the segments before, and the segment's own peak: the most of all segments."""
        states = sum(segment.kept[0] for segment in self.segments)
        before = accumulate((segment.kept[1] for segment in self.segments), initial=0.0)
        own = (segment.peak_bytes - segment.kept[0] for segment in self.segments)
        return states + max(a + b for a, b in zip(before, own, strict=False))


@dataclass(frozen=True)
class LayoutSolution:
    """The best layouts found, and the proof."""

    best: ModelLayout
    bound_s: float
    """No layouts within the limit take less."""
    tradeoff: tuple[ModelLayout, ...]
    """Layouts seen of which none is both faster and leaner than another: fastest first."""

    @property
    def gap(self) -> float:
        """``seconds / bound - 1``; 0 is proven best."""
        return max(0.0, self.best.seconds / self.bound_s - 1.0)


def undominated(seen: Sequence[ModelLayout]) -> tuple[ModelLayout, ...]:
    """Those of which none is both faster and leaner than another, fastest first."""
    kept: list[ModelLayout] = []
    for layout in sorted(seen, key=lambda found: (found.seconds, found.peak_bytes)):
        if not kept or layout.peak_bytes < kept[-1].peak_bytes:
            kept.append(layout)
    return tuple(kept)
