"""Bytes of one pipeline rank over the step: what it always holds, what every microbatch in flight keeps, and what runs
beside them. The peak is the maximum over time (`costmodels.schedules` adds up what is there when), not a sum of maxima.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from costmodels.memory import Recipe
from costmodels.overlap import Array
from planner.solvers.saved import num_logits
from planner.solvers.segment_costs import SegmentCosts

TRACED_SAVED, TRACED_BESIDE = 4, 8
"""Bytes per logit of torch's loss in fp32 as traced: its log-probabilities are saved, their gradient and the logits'
come beside them."""


@dataclass(frozen=True)
class StageBytes:
    """Bytes of a candidate's stages. Arrays are per segment."""

    costs: SegmentCosts

    @property
    def _recipe(self) -> Recipe:
        return self.costs.setting.execution.recipe

    @property
    def _grad_bytes(self) -> int:
        accumulated = self._recipe.accumulated_bytes
        return self.costs.setting.precision.grad_bytes if accumulated is None else accumulated

    @cached_property
    def kept_bytes(self) -> Array:
        """Per segment: activations on the device from a microbatch's forward to its backward."""
        return self._saved_bytes - self._offloaded_bytes - TRACED_SAVED * self._other_logits

    @cached_property
    def _saved_bytes(self) -> Array:
        """Per segment: what its backward reads of its forward, or makes that of."""
        none = self.costs.per_segment(lambda p: p.saved_bytes["none"])
        return none + self.costs.recomputed * (self.costs.saved_bytes - none)

    @cached_property
    def _offloaded_bytes(self) -> Array:
        """Per segment: of what it saves, what waits in host memory."""
        setting = self.costs.setting
        return setting.execution.offload_activations * setting.repeated * self._saved_bytes

    @cached_property
    def transient_bytes(self) -> Array:
        """Per segment: temporary tensors of its forward or backward."""
        other = self._other_logits
        beside = (self._recipe.logit_bytes or 0) - TRACED_BESIDE
        return self.costs.per_segment(lambda p: p.transient_bytes) + beside * other

    @cached_property
    def _other_logits(self) -> Array:
        """Per segment: logits on one device whose loss is not torch's."""
        if self._recipe.logit_bytes is None:
            return np.zeros(len(self.costs.setting.block_of))
        c, setting = self.costs.candidate, self.costs.setting
        length = setting.job.seq_len // c.cp
        return setting.per_segment([num_logits(b, c.microbatch_size, length) / c.tp for b in setting.graph.blocks])

    @cached_property
    def work_bytes(self) -> Array:
        """Per segment: what its backward needs beside what is kept: temporary tensors, what is made again or comes back
        from the host (the next block's too), and under ZeRO-2 and 3 whole parameters and gradients (gathered ahead)."""
        c, precision = self.costs.candidate, self.costs.setting.precision
        again = self.costs.per_segment(lambda p: p.rematerialised_bytes(c.recompute))
        whole = np.zeros_like(again)
        if c.zero_stage >= 2:
            whole += self._grad_bytes * self.costs.trained_numel
        if c.zero_stage == 3:
            ahead = np.concatenate([[0.0], self.costs.numel[:-1]])
            whole += precision.gathered_bytes * (self.costs.numel + ahead)
        return self.transient_bytes + self.costs.recomputed * again + 2 * self._offloaded_bytes + whole

    def working_bytes(self, a: int, b: int) -> tuple[int, int, int]:
        """Of a stage of segments [a, b): bytes kept per microbatch in flight, and beside them while its forward and its
        backward run. The backward of segment i runs when the kept activations of i and all before it are there, so its
        peak is ``max_i(sum_(j <= i) kept_j + work_i)``."""
        kept, work = self.kept_bytes[a:b], self.work_bytes[a:b]
        total = float(kept.sum())
        over_time = np.cumsum(kept)
        beside = {"F": self.transient_bytes[a:b], "B": work}
        peak = {name: float((over_time + extra).max()) - total for name, extra in beside.items()}
        sent = 0.0 if self._recipe.sent_outputs_freed else float(self.costs.crossing_bytes[b])
        return int(total + sent), max(0, int(peak["F"])), max(0, int(peak["B"]))

    @property
    def reduces_each(self) -> bool:
        """Whether every microbatch's gradients are reduced, so that devices keep their share alone."""
        return self.costs.candidate.zero_stage >= 2

    def drained_bytes(self, chunks: Sequence[tuple[int, int]], peak: int) -> int:
        """Of ``peak``, what counts where a rank's forward passes are all over before its gradients come into being:
        all of it, for frameworks that have them from the start."""
        return peak

    def state_bytes(self, chunks: Sequence[tuple[int, int]]) -> dict[str, int]:
        """What a rank that holds these stages keeps all the time: the table of `costmodels.memory`, and buffers."""
        c, precision = self.costs.candidate, self.costs.setting.precision
        inside = [i for a, b in chunks for i in range(a, b)]
        numel, trained = self.costs.held_numel(inside)
        owned = float(sum(self.costs.owned_numel[a:b].sum() for a, b in chunks))
        # A tied parameter is reduced where it is read first; a rank that reads it later has a state of its own.
        owned += sum(
            n / self.costs.shards
            for first, later, n, is_trained in self.costs.tied()
            if is_trained and later in inside and first not in inside
        )
        frozen = (numel - trained) / self.costs.shards
        copies = precision.gathered_bytes if c.zero_stage else precision.copy_bytes
        parts = {
            "parameters": precision.param_bytes * (owned + frozen),
            "compute_copy": 0.0 if c.zero_stage == 3 else copies * numel,
            "gradients": self._grad_bytes * (owned if self.reduces_each else trained),
            "passing_gradients": self._recipe.passing_bytes * trained,
            "flat_buffers": self._recipe.buffer_bytes,
            "optimizer": precision.state_bytes * self.costs.setting.num_states * owned,
            "buffers": float(sum(self.costs.setting.graph.resident_bytes[i] for i in inside)),
        }
        return {name: int(size) for name, size in parts.items()}
