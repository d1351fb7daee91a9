"""One whole step of a pipeline under 1F1B, as a `Breakdown` that adds up.

With ``m`` microbatches, ``t_i`` the seconds of one microbatch on stage i (forward, backward, exposed communication)
and ``d_i`` what stage i does once per step (exposed gradient reduction, optimizer):

    step = sum_i t_i + max_i ((m - 1) t_i + d_i)

the closed form of 1F1B (`costmodels.pipeline.closed_form_s`) with the once-per-step work of the stage that ends last.
Written for that stage i*: ``m t_i* + d_i*``, its own work term by term, plus ``sum of the other t_i``, the bubble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodels.breakdown import Breakdown, Term


@dataclass(frozen=True)
class Seconds:
    """Expected seconds with their range."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class StageSeconds:
    """Named seconds of one stage."""

    per_microbatch: Mapping[str, Seconds]
    per_step: Mapping[str, Seconds]

    @property
    def microbatch_s(self) -> float:
        return sum(s.expected for s in self.per_microbatch.values())

    @property
    def step_s(self) -> float:
        return sum(s.expected for s in self.per_step.values())


def step_breakdown(stages: Sequence[StageSeconds], num_microbatches: int, evidence: str) -> Breakdown:
    """Breakdown of the step (module docstring), every term with the evidence of the hardware profile; the bubble is
    derived.

    Stages must name the same terms. Zero terms are left out.
    """
    slowest = max(range(len(stages)), key=lambda i: (num_microbatches - 1) * stages[i].microbatch_s + stages[i].step_s)
    last = stages[slowest]
    terms = [
        Term(name=name, seconds=n * s.expected, low_s=n * s.low, high_s=n * s.high, evidence=evidence)
        for n, named in ((num_microbatches, last.per_microbatch), (1, last.per_step))
        for name, s in named.items()
    ]
    others = [s for i, stage in enumerate(stages) if i != slowest for s in stage.per_microbatch.values()]
    terms.append(
        Term(
            name="pp.bubble",
            seconds=sum(s.expected for s in others),
            low_s=sum(s.low for s in others),
            high_s=sum(s.high for s in others),
            evidence="derived",
        )
    )
    return Breakdown(tuple(term for term in terms if term.high_s > 0))
