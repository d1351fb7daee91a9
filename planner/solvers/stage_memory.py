"""Bytes of one pipeline rank over the step: what it always holds, what every microbatch in flight keeps, and what runs
beside them. The peak is the maximum over time (`costmodels.schedules` adds up what is there when), not a sum of maxima.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from costmodels.overlap import Array
from planner.solvers.stage_costs import StageCosts


@dataclass(frozen=True)
class StageBytes:
    """Bytes of a candidate's stages. Arrays are per segment."""

    costs: StageCosts

    @cached_property
    def kept_bytes(self) -> Array:
        """Per segment: activations from a microbatch's forward to its backward."""
        none = self.costs.per_segment([p.saved_bytes["none"] for p in self.costs.prices])
        policy = self.costs.per_segment([p.saved_bytes[self.costs.candidate.recompute] for p in self.costs.prices])
        return none + self.costs.recomputed * (policy - none)

    @cached_property
    def work_bytes(self) -> Array:
        """Per segment: what its backward needs beside what is kept: temporary tensors, what is made again, and under
        ZeRO-2 and 3 whole parameters and gradients (of the next block too, gathered ahead)."""
        c, precision = self.costs.candidate, self.costs.setting.precision
        again = self.costs.per_segment([p.rematerialised_bytes[c.recompute] for p in self.costs.prices])
        whole = np.zeros_like(again)
        if c.zero_stage >= 2:
            whole += precision.grad_bytes * self.costs.trained_numel
        if c.zero_stage == 3:
            ahead = np.concatenate([[0.0], self.costs.numel[:-1]])
            whole += precision.gathered_bytes * (self.costs.numel + ahead)
        return (
            self.costs.per_segment([p.transient_bytes for p in self.costs.prices])
            + self.costs.recomputed * again
            + whole
        )

    def working_bytes(self, a: int, b: int) -> tuple[int, int, int]:
        """Of a stage of segments [a, b): bytes kept per microbatch in flight, and beside them while its forward and its
        backward run. The backward of segment i runs when the kept activations of i and all before it are there, so its
        peak is ``max_i(sum_(j <= i) kept_j + work_i)``."""
        kept, work = self.kept_bytes[a:b], self.work_bytes[a:b]
        total = float(kept.sum())
        forward = self.costs.per_segment([p.transient_bytes for p in self.costs.prices])[a:b]
        over_time = np.cumsum(kept)
        peak = {name: float((over_time + extra).max()) - total for name, extra in (("F", forward), ("B", work))}
        return int(total + self.costs.crossing_bytes[b]), max(0, int(peak["F"])), max(0, int(peak["B"]))

    def state_bytes(self, chunks: Sequence[tuple[int, int]]) -> dict[str, int]:
        """What a rank that holds these stages keeps all the time: the table of `costmodels.memory`, and buffers."""
        c, precision = self.costs.candidate, self.costs.setting.precision
        inside = [i for a, b in chunks for i in range(a, b)]
        tied = [(n, trained) for first, later, n, trained in self.costs.tied() if {first, later} <= set(inside)]
        numel = float(self.costs.numel[inside].sum()) - sum(n for n, _ in tied)
        owned = float(self.costs.owned_numel[inside].sum())
        trained = float(self.costs.trained_numel[inside].sum()) - sum(n for n, is_trained in tied if is_trained)
        frozen = (numel - trained) / self.costs.shards
        copies = precision.gathered_bytes if c.zero_stage else precision.copy_bytes
        parts = {
            "parameters": precision.param_bytes * (owned + frozen),
            "compute_copy": 0.0 if c.zero_stage == 3 else copies * numel,
            "gradients": precision.grad_bytes * (owned if c.zero_stage >= 2 else trained),
            "optimizer": precision.state_bytes * self.costs.setting.num_states * owned,
            "buffers": float(sum(self.costs.setting.graph.resident_bytes[i] for i in inside)),
        }
        return {name: int(size) for name, size in parts.items()}
