"""What a rank holds over a step as this project's runtime runs it: torch's ``fully_shard`` in time.

`StageBytes` adds up for a segment's backward pass what any of its moments needs, which is right for frameworks of
which no more is known. Here the moments follow each other. With ``g`` bytes per gathered parameter, ``r`` per reduced
one, and ``n`` devices that share states, segment ``i`` of ``P`` parameters needs beside what is kept

- before its backward pass, under ``zero_stage`` 3, ``2 g P``: what was gathered, and its copies into place;
- during it temporary tensors, what it computes again, under 3 its parameters and the gathered ones of the segment
  before (ahead of time), and the reduce-scatter's input of the segment behind, ``r P'``, which is freed late;
- after it, its own activations being gone, its gradients (``g P``), the reduce-scatter's input and result
  (``r P (1 + 1 / n)``).

In a step of one microbatch gradients come into being as the backward pass goes; where all forward passes come first,
with the first backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from costmodels.overlap import Array
from planner.solvers.saved import num_logits
from planner.solvers.stage_memory import TRACED_BESIDE, StageBytes

BESIDE = 4
"""Bytes per logit that the runtime's loss needs in its backward pass, beside as many saved."""


class RuntimeBytes(StageBytes):
    """Bytes of a candidate's stages under the runtime."""

    @cached_property
    def transient_bytes(self) -> Array:
        """Per segment: temporary tensors; the runtime's loss has fewer than the traced one."""
        c, setting = self.costs.candidate, self.costs.setting
        length = setting.job.seq_len // c.cp
        logits = setting.per_segment([num_logits(b, c.microbatch_size, length) / c.tp for b in setting.graph.blocks])
        return self.costs.per_segment(lambda p: p.transient_bytes) - (TRACED_BESIDE - BESIDE) * logits

    @cached_property
    def work_bytes(self) -> Array:
        """Per segment: the most that its backward pass needs beside what is kept (module docstring)."""
        c, precision = self.costs.candidate, self.costs.setting.precision
        numel, trained = self.costs.numel, self.costs.trained_numel
        g, r = precision.gathered_bytes, precision.reduced_bytes
        again = self.costs.recomputed * self.costs.per_segment(lambda p: p.rematerialised_bytes(c.recompute))
        before, during = np.zeros_like(numel), self.transient_bytes + again
        after = -self.kept_bytes
        if self._reduces:
            behind = np.concatenate([trained[1:], [0.0]])
            during = during + r * behind
            after = after + g * trained + r * (1 + 1 / self.costs.shards) * trained
        if c.zero_stage == 3:
            ahead = np.concatenate([[0.0], numel[:-1]])
            before = 2 * g * numel
            during = during + g * (numel + ahead)
            after = after + g * ahead
        return np.maximum(np.maximum(before, during), after)

    @property
    def reduces_each(self) -> bool:
        """Under ``zero_stage`` 1 the last microbatch's are reduced, which may be the only one."""
        c = self.costs.candidate
        return c.zero_stage >= 2 or (c.zero_stage == 1 and c.num_microbatches == 1)

    @property
    def _reduces(self) -> bool:
        """Whether `fully_shard` runs at all: one device computes with its parameters as they are, or with copies."""
        c, precision = self.costs.candidate, self.costs.setting.precision
        return c.state_shard * c.dp_replicate > 1 or precision.copy_bytes > 0

    def working_bytes(self, a: int, b: int) -> tuple[int, int, int]:
        """As `StageBytes`, less the gradients that one microbatch has not made yet."""
        c, total = self.costs.candidate, float(self.kept_bytes[a:b].sum())
        gradients = self._grad_bytes * (self.costs.owned_numel if self.reduces_each else self.costs.trained_numel)
        missing = np.cumsum(gradients[a:b]) * (c.num_microbatches == 1 and c.num_chunks == 1)
        over_time = np.cumsum(self.kept_bytes[a:b])
        forward = self.transient_bytes[a:b]
        if c.zero_stage == 3:
            forward = forward + 2 * self.costs.setting.precision.gathered_bytes * self.costs.numel[a:b]
        peaks = [
            float((over_time + extra).max()) - total
            for extra in (forward - missing[-1], self.work_bytes[a:b] - missing)
        ]
        return int(total + self.costs.crossing_bytes[b]), *(int(peak) for peak in peaks)  # type: ignore[return-value]

    def drained_bytes(self, chunks: Sequence[tuple[int, int]], peak: int) -> int:
        """The first backward pass finds no gradients yet, the second one microbatch less."""
        if self.costs.candidate.num_microbatches == 1:
            return peak
        kept = sum(self.working_bytes(a, b)[0] for a, b in chunks)
        return max(peak - self.state_bytes(chunks)["gradients"], peak - kept)
