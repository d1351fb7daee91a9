"""Price of one layout with given stages: the simulated step as named terms, and every rank's peak over time.

The schedule is simulated with the seconds of every stage (`costmodels.schedules`); what a rank does once per step
(gradient reduction, optimizer, gathers) follows its last action. The rank that ends last is written term by term; its
waiting is the bubble.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from costmodels.breakdown import Breakdown, Term
from costmodels.schedules.actions import parts
from costmodels.schedules.catalogue import make
from costmodels.schedules.cost import Cost, StageCost
from costmodels.schedules.schedule import Schedule
from costmodels.schedules.steady import price_step as schedule_step
from costmodels.schedules.steady import simulate_step
from costmodels.step import Seconds, StageSeconds
from planner.plan import StageMemory
from planner.solvers.classes import class_seconds
from planner.solvers.data_parallel import stage_exposed_s
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.stage_memory import StageBytes
from planner.solvers.stage_terms import stage_seconds


@dataclass(frozen=True)
class StepPrice:
    breakdown: Breakdown
    memory: tuple[StageMemory, ...]
    """Per pipeline rank, at its peak."""
    classes: Mapping[str, float]
    """The same seconds by class of operation (`planner.solvers.classes`)."""

    @property
    def step_s(self) -> float:
        return self.breakdown.step_s

    @property
    def peak_bytes(self) -> int:
        return max(memory.total_bytes for memory in self.memory)


def price_step(
    costs: SegmentCosts, cuts: Sequence[int], own: Schedule | None = None, memory: StageBytes | None = None
) -> StepPrice:
    """Simulate one step (module docstring).

    Args:
        cuts: virtual stage ``i`` holds segments ``[cuts[i], cuts[i + 1])``; ``pp * num_chunks`` stages.
        own: orders that are no schedule's with a name.
        memory: what stages hold, where more is known than `StageBytes` says.
    Raises:
        ScheduleError: the schedule does not run with these numbers of ranks, chunks and microbatches.
    """
    c = costs.candidate
    stages = list(pairwise(cuts))
    seconds = [stage_seconds(costs, a, b, opens=s < c.pp) for s, (a, b) in enumerate(stages)]
    memory = memory or StageBytes(costs)
    cost = schedule_cost(costs, cuts, memory)
    if own:
        schedule, step = own, simulate_step(own, cost)
    else:
        schedule = make(c.schedule, c.pp, min(c.num_microbatches, 2 * c.pp), c.num_chunks)
        step = schedule_step(c.schedule, c.pp, c.num_microbatches, cost, c.num_chunks)
    held = [sorted(set(schedule.stages_of(rank))) for rank in range(c.pp)]
    once = [sum(seconds[s].step_s for s in chunks) for chunks in held]
    last = max(range(c.pp), key=lambda rank: step.ends_s[rank] + once[rank])
    terms = _terms([seconds[s] for s in held[last]], c.num_microbatches, costs.setting.cluster.evidence)
    own_s = c.num_microbatches * sum(seconds[s].microbatch_s - _sends(seconds[s]) for s in held[last])
    bubble_s = max(0.0, step.ends_s[last] - own_s)
    terms.append(Term(name="pp.bubble", seconds=bubble_s, low_s=bubble_s, high_s=bubble_s, evidence="derived"))
    return StepPrice(
        Breakdown(tuple(term for term in terms if term.high_s > 0)),
        tuple(
            _memory(memory, [stages[s] for s in held[rank]], step.peak_bytes[rank], drains=_drains(schedule, rank))
            for rank in range(c.pp)
        ),
        class_seconds(costs, [stages[s] for s in held[last]], bubble_s),
    )


def schedule_cost(costs: SegmentCosts, cuts: Sequence[int], memory: StageBytes | None = None) -> Cost:
    """All virtual stages as the simulator wants them."""
    memory = memory or StageBytes(costs)
    return Cost(
        tuple(_stage_cost(costs, memory, a, b) for a, b in pairwise(cuts)),
        sends_block=not costs.setting.execution.overlap_send,
    )


def _stage_cost(costs: SegmentCosts, memory: StageBytes, a: int, b: int) -> StageCost:
    """One virtual stage as the simulator wants it; what a microbatch gathers and reduces is part of its passes."""
    per_microbatch, _ = costs.data_parallel
    exposed = {name: stage_exposed_s(e, a, b) for name, e in per_microbatch.items()}
    gather_s = exposed.pop("dp.parameter_gather", 0.0)
    weight_s = float(costs.weight_s[a:b].sum())
    copied_out_s, copied_in_s = costs.offload_s
    backward_s = float((costs.backward_s + copied_in_s)[a:b].sum()) + sum(exposed.values())
    saved, forward, backward = memory.working_bytes(a, b)
    return StageCost(
        forward_s=float((costs.forward_s + copied_out_s)[a:b].sum()) + gather_s,
        input_grad_s=backward_s - weight_s,
        weight_grad_s=weight_s,
        send_forward_s=float(costs.send_s[b]),
        send_backward_s=float(costs.send_s[a]),
        saved_bytes=saved,
        forward_transient_bytes=forward,
        backward_transient_bytes=backward,
    )


def _sends(named: StageSeconds) -> float:
    return named.per_microbatch["pp.send_recv"].expected


def _terms(chunks: Sequence[StageSeconds], num_microbatches: int, evidence: str) -> list[Term]:
    """Terms of one rank: those of its chunks, summed by name; sends are part of the bubble."""
    total: dict[str, Seconds] = defaultdict(lambda: Seconds(0.0, 0.0, 0.0))
    for chunk in chunks:
        for times, named in ((num_microbatches, chunk.per_microbatch), (1, chunk.per_step)):
            for name, s in named.items():
                if name != "pp.send_recv":
                    sum_ = total[name]
                    total[name] = Seconds(
                        sum_.expected + times * s.expected, sum_.low + times * s.low, sum_.high + times * s.high
                    )
    return [
        Term(name=name, seconds=s.expected, low_s=s.low, high_s=s.high, evidence=evidence) for name, s in total.items()
    ]


def _memory(memory: StageBytes, chunks: Sequence[tuple[int, int]], peak: int, *, drains: bool) -> StageMemory:
    """State of the chunks, and the most that activations and work take over the step."""
    state = memory.state_bytes(chunks)
    activations = memory.drained_bytes(chunks, peak) if drains else peak
    return StageMemory(parts={name: size for name, size in {**state, "activations": activations}.items() if size})


def _drains(schedule: Schedule, rank: int) -> bool:
    """Whether all forward passes of a rank come before its first backward pass."""
    kinds = [action.kind for entry in schedule.orders[rank] for action in parts(entry)]
    return "F" not in kinds[next(i for i, kind in enumerate(kinds) if kind != "F") :]
