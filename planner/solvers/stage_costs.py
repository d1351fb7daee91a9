"""Seconds and bytes of every possible pipeline stage of one candidate, as matrices over (first, last) segment.

Everything is additive over segments, but for what stands at a stage's borders (sends, the first gather) and for the
largest block's transient memory; so prefix sums and running maxima give all stages at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from costmodels import memory
from costmodels.overlap import Array
from costmodels.pipeline import in_flight
from planner.plan import StageMemory
from planner.solvers.inter_op import Mask, Matrix
from planner.solvers.ranges import range_maxima, range_second, range_sums
from planner.solvers.segment_costs import SegmentCosts


@dataclass(frozen=True)
class StageCosts(SegmentCosts):
    """What the search asks of one candidate: every stage's seconds and bytes, and bounds on both."""

    # --- seconds ---------------------------------------------------------------------------------------------------

    @cached_property
    def _microbatch_s(self) -> Array:
        """Per segment: what one microbatch adds to its stage."""
        per_microbatch, _ = self.data_parallel
        return self.forward_s + self.backward_s + sum(e.expected for e in per_microbatch.values())

    @cached_property
    def _once_s(self) -> Array:
        """Per segment: what it adds to its stage once per step."""
        _, per_step = self.data_parallel
        return self.clip_s + self.optimizer_s + self.replicated_s + sum(e.expected for e in per_step.values())

    @cached_property
    def microbatch_s(self) -> Matrix:
        """``t`` of `costmodels.step` for every stage."""
        per_microbatch, _ = self.data_parallel
        first = sum((e.first for e in per_microbatch.values()), np.zeros_like(self._microbatch_s))
        send = self.send_s
        return range_sums(self._microbatch_s) + first[:, None] + send[:-1, None] + send[None, :]

    @cached_property
    def once_s(self) -> Matrix:
        """``d`` of `costmodels.step` for every stage."""
        _, per_step = self.data_parallel
        first = sum((e.first for e in per_step.values()), np.zeros_like(self._once_s))
        return range_sums(self._once_s) + first[:, None] + self.tied_s

    @cached_property
    def remaining_s(self) -> Matrix:
        """``w = (m - 1) t + d`` of `planner.solvers.inter_op` for every stage."""
        t = self.microbatch_s
        repeats = np.multiply(self.candidate.num_microbatches - 1, t, where=np.isfinite(t), out=np.full_like(t, np.inf))
        return repeats + self.once_s

    @cached_property
    def lower_bound_s(self) -> float:
        """No cut of this candidate is faster: a sum over stages is at least that over segments, a maximum the mean."""
        c = self.candidate
        t, d = float(self._microbatch_s.sum()), float(self._once_s.sum())
        return t + ((c.num_microbatches - 1) * t + d) / c.pp

    # --- bytes -----------------------------------------------------------------------------------------------------

    @cached_property
    def _numel_ranges(self) -> tuple[Matrix, Matrix]:
        """Parameters and trained parameters of every stage, none where it is empty (what is infinite there are its
        activations); a tied one counts once where both readers are."""
        numel, trained = (np.triu(range_sums(x), 1) for x in (self.numel, self.trained_numel))
        for first, later, elements, is_trained in self.tied():
            numel[: first + 1, later + 1 :] -= elements
            trained[: first + 1, later + 1 :] -= elements if is_trained else 0
        return numel, trained

    @cached_property
    def memory_parts(self) -> Mapping[str, Matrix]:
        """Bytes of every stage by part, but for activations, which depend on the stage's position."""
        c, precision = self.candidate, self.setting.precision
        numel, trained = self._numel_ranges
        state = memory.state_bytes(
            precision=precision, num_states=self.setting.num_states, zero_stage=c.zero_stage, dp_shard=c.state_shard,
            numel=numel, trained_numel=trained,
            gathered_numel=range_maxima(self.numel) + range_second(self.numel),
        )  # fmt: skip
        per_block = {0: 0, 1: precision.grad_bytes}.get(c.zero_stage, precision.gathered_bytes + precision.grad_bytes)
        crossing = self.crossing_bytes
        transient = self.per_segment(lambda p: p.transient_bytes + p.rematerialised_bytes(c.recompute))
        return {
            "parameters": state.parameters,
            "compute_copy": state.compute_copy,
            "gradients": state.gradients,
            "optimizer": state.optimizer,
            "buffers": np.triu(range_sums(np.asarray(self.setting.graph.resident_bytes, dtype=np.float64)), 1),
            "transient": range_maxima(transient),
            "communication_buffers": per_block * range_maxima(self.trained_numel)
            + crossing[:-1, None] + crossing[None, :],
        }  # fmt: skip

    @cached_property
    def activation_bytes(self) -> Matrix:
        """Bytes that every stage keeps per microbatch in flight: what its blocks save, and its output. Infinite where a
        stage would have no module."""
        kept = range_sums(self.saved_bytes) + self.crossing_bytes[None, :]
        return np.where(range_sums(self.setting.named) > 0, kept, np.inf)

    @cached_property
    def _held(self) -> list[int]:
        """Per pipeline position: microbatches in flight."""
        c = self.candidate
        return [in_flight(i, c.pp, c.num_microbatches) for i in range(c.pp)]

    @cached_property
    def peak_bytes(self) -> list[Matrix]:
        """Per pipeline position: peak of every stage."""
        fixed = sum(self.memory_parts.values())
        by_held = {n: fixed + n * self.activation_bytes for n in set(self._held)}
        return [by_held[n] for n in self._held]

    def fits(self, capacity_bytes: float) -> list[Mask]:
        """Per pipeline position: which stages have room, ``fixed + held * activations <= capacity``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            room = (capacity_bytes - sum(self.memory_parts.values())) / self.activation_bytes
        masks = {n: room >= n for n in set(self._held)}
        return [masks[n] for n in self._held]

    @cached_property
    def least_peak_bytes(self) -> float:
        """No cut of this candidate needs less on its fullest device: states and one microbatch, spread evenly."""
        c = self.candidate
        numel, trained = self.held_numel(range(len(self.setting.block_of)))
        state = memory.state_bytes(
            precision=self.setting.precision, num_states=self.setting.num_states, zero_stage=c.zero_stage,
            dp_shard=c.dp_shard, numel=np.array([numel]), trained_numel=np.array([trained]),
            gathered_numel=np.zeros(1),
        )  # fmt: skip
        spread = state.parameters + state.gradients + state.optimizer + self.saved_bytes.sum() + self.crossing_bytes[-1]
        return float(spread[0]) / c.pp

    def stage_memory(self, position: int, a: int, b: int) -> StageMemory:
        """Peak of the stage of segments [a, b) at a pipeline position, by part."""
        parts = {name: int(matrix[a, b]) for name, matrix in self.memory_parts.items()}
        parts["activations"] = int(self._held[position] * self.activation_bytes[a, b])
        return StageMemory(parts={name: size for name, size in parts.items() if size})
