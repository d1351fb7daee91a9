"""What training a plan for some steps showed, beside what the plan expected."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from planner.plan import Plan, Prediction


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step; figures of the slowest rank, and of the fullest."""

    number: int
    """From 1."""
    loss: float
    grad_norm: float
    """Of all gradients, before they are clipped."""
    seconds: float
    peak_bytes: int
    """Since the run began: what tensors took on a device; on CPUs what the process grew by, freed memory included."""
    profiled: bool = False
    """Slower for it."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run."""

    plan: Plan
    device: str
    """As torch names its kind: ``cpu``, ``cuda``."""
    steps: tuple[Step, ...]
    predicted: Prediction | None
    """``None`` where the hardware's profile could not be found, and the plan predicts nothing."""

    @property
    def timed(self) -> tuple[Step, ...]:
        """Steps whose time says something: the first allocates and warms up, one that is profiled is slow; all where
        there are no others."""
        return tuple(s for s in self.steps[1:] if not s.profiled) or self.steps

    @property
    def step_s(self) -> float:
        """Median of the timed steps."""
        return median(step.seconds for step in self.timed)

    @property
    def peak_bytes(self) -> int:
        return max(step.peak_bytes for step in self.steps)

    def tokens_per_s(self, step_s: float) -> float:
        """Over all devices; samples where the model has no sequence."""
        job = self.plan.inputs.job
        return job.global_batch * job.seq_len / step_s

    def mfu(self, step_s: float) -> float | None:
        """`Prediction.mfu` of a step of another length: what is predicted is the same FLOP over the same peak."""
        return None if self.predicted is None else self.predicted.mfu * self.predicted.step_s / step_s
