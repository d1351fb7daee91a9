"""The step that a plan is expected to make, as a Chrome trace: open it in Perfetto or chrome://tracing beside the one
that was measured.

Every pipeline rank is a process of the trace. Its first row has the actions of the simulated schedule, each made of the
terms of its price one after another, and behind them what a rank does once per step; the second row has communication
that computation is expected to hide, the third what is sent to other ranks. The format is that of "Trace Event Format"
(Google, 2016): complete events ``X`` with microseconds, metadata ``M``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from costmodels.schedules.actions import Action, Entry, parts
from costmodels.schedules.timeline import Span, Timeline, simulate
from costmodels.units import microseconds
from planner.plan import Plan
from planner.solvers.data_parallel import stage_exposed_s
from planner.solvers.passes import PassSeconds
from planner.solvers.plan_price import plan_costs
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.setting import Setting
from planner.solvers.stage_terms import stage_seconds
from planner.solvers.step_price import schedule_cost
from planner.stages import stage_cuts

WORK, HIDDEN, SENDS = range(3)
ROWS = ("computation and exposed communication", "hidden communication", "sends")
KINDS = {"F": "forward", "B": "backward", "I": "gradient of inputs", "W": "gradient of weights"}

Terms = Mapping[str, float]
"""Name as in a plan's breakdown -> seconds."""


def predicted_trace(setting: Setting, plan: Plan) -> dict[str, Any]:
    """The trace of a plan's step, all microbatches of it, as the object that the file holds.

    The last event of a rank ends where the price of the plan says that the rank's step does.

    Raises:
        UsageError: as `planner.solvers.plan_price.predict_plan`.
    """
    costs, cuts = plan_costs(setting, plan), stage_cuts(setting.graph, plan.stages)
    timeline = simulate(plan.order, schedule_cost(costs, cuts))
    stages = [_stage(costs, a, b, opens=s < plan.candidate.pp) for s, (a, b) in enumerate(pairwise(cuts))]
    events = [event for rank in range(plan.candidate.pp) for event in _rank(timeline, stages, rank)]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"model": plan.inputs.model, "hardware": setting.cluster.name, "schedule": plan.schedule},
    }


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Named seconds of one stage."""

    exposed: Mapping[str, Terms]
    """Kind of action -> what it is made of."""
    hidden: Mapping[str, Terms]
    """Kind of action -> communication behind it."""
    once: Terms
    """Once per step, after the last action."""
    once_hidden: Terms


def _stage(costs: SegmentCosts, a: int, b: int, *, opens: bool) -> _Stage:
    inside = [costs.prices[block] for block in costs.setting.block_of[a:b]]
    per_microbatch, _ = costs.data_parallel
    exposed = {name: stage_exposed_s(e, a, b) for name, e in per_microbatch.items()}
    hidden = {name: float(e.high[a:b].sum()) - exposed[name] for name, e in per_microbatch.items()}
    offload = [float(seconds[a:b].sum()) for seconds in costs.offload_s]
    gather = "dp.parameter_gather"

    forward = _named([p.forward for p in inside])
    recompute_s = sum(
        share * p.again[costs.candidate.recompute].total for share, p in zip(costs.recomputed[a:b], inside, strict=True)
    )
    backward = {"compute.recompute": recompute_s, **_named([p.backward for p in inside])}
    backward["compute.accumulate"] = float(costs.accumulate_s[a:b].sum())
    late = {
        "compute.gemm": float((costs.weight_s - costs.accumulate_s)[a:b].sum()),
        "compute.accumulate": backward["compute.accumulate"],
    }
    whole = {**backward, "host.offload": offload[1], **{n: s for n, s in exposed.items() if n != gather}}
    once = stage_seconds(costs, a, b, opens=opens).per_step
    return _Stage(
        exposed={
            "F": {gather: exposed.get(gather, 0.0), **forward, "host.offload": offload[0]},
            "B": whole,
            "I": {name: seconds - late.get(name, 0.0) for name, seconds in whole.items()},
            "W": late,
        },
        hidden={
            "F": {gather: hidden.get(gather, 0.0), "tp.collectives": sum(p.forward.hidden_collectives for p in inside)},
            "B": {
                **{name: s for name, s in hidden.items() if name != gather},
                "tp.collectives": sum(p.backward.hidden_collectives for p in inside),
            },
        },
        once={name: s.expected for name, s in once.items()},
        once_hidden={name: s.high - s.expected for name, s in once.items()},
    )


def _named(passes: list[PassSeconds]) -> dict[str, float]:
    return {
        "compute.gemm": sum(p.gemm for p in passes),
        "compute.attention": sum(p.attention for p in passes),
        "compute.memory_bound": sum(p.memory_bound for p in passes),
        "compute.host": sum(p.host for p in passes),
        "tp.collectives": sum(p.collectives for p in passes),
        "cp.attention": sum(p.context for p in passes),
        "ep.all_to_all": sum(p.experts for p in passes),
    }


def _rank(timeline: Timeline, stages: list[_Stage], rank: int) -> Iterator[dict[str, Any]]:
    """All events of one pipeline rank."""
    yield _meta("process_name", rank, name=f"pipeline rank {rank}")
    yield _meta("process_sort_index", rank, sort_index=rank)
    for row, name in enumerate(ROWS):
        yield _meta("thread_name", rank, row, name=name)
        yield _meta("thread_sort_index", rank, row, sort_index=row)
    behind_s = sent_s = 0.0
    for span in timeline.spans(rank):
        yield _slice(_words(span.entry), "action", rank, WORK, span.start_s, span.end_s, _about(span.entry))
        yield from _inside(span, stages, rank)
        at_s = max(behind_s, span.start_s)
        for action in parts(span.entry):
            for name, seconds in _positive(stages[action.stage].hidden.get(action.kind, {})):
                yield _slice(name, "hidden", rank, HIDDEN, at_s, at_s + seconds)
                behind_s = at_s = at_s + seconds
            send_s = _send_s(timeline, action)
            if send_s:
                at_s, sent_s = max(sent_s, span.end_s), max(sent_s, span.end_s) + send_s
                yield _slice(f"send {_words(action)}", "send", rank, SENDS, at_s, sent_s, _about(action))
    at_s = timeline.spans(rank)[-1].end_s
    behind_s = max(behind_s, at_s)
    for stage in sorted(set(timeline.schedule.stages_of(rank))):
        for name, seconds in _positive(stages[stage].once_hidden):
            yield _slice(name, "hidden", rank, HIDDEN, behind_s, behind_s + seconds, {"stage": stage})
            behind_s += seconds
        for name, seconds in _positive(stages[stage].once):
            yield _slice(name, "once", rank, WORK, at_s, at_s + seconds, {"stage": stage})
            at_s += seconds


def _inside(span: Span, stages: list[_Stage], rank: int) -> Iterator[dict[str, Any]]:
    """Terms of an action, or of two that run at once; what they take longer than the action is hidden by the other."""
    made_of = [stages[action.stage].exposed[action.kind] for action in parts(span.entry)]
    terms = [term for named in made_of for term in _positive(named)]
    total_s = sum(seconds for _, seconds in terms)
    scale = min(1.0, (span.end_s - span.start_s) / total_s) if total_s else 0.0
    at_s = span.end_s - scale * total_s
    for name, seconds in terms:
        yield _slice(name, "term", rank, WORK, at_s, at_s + scale * seconds)
        at_s += scale * seconds


def _send_s(timeline: Timeline, action: Action) -> float:
    """Seconds of what an action sends to another rank."""
    stages, schedule = timeline.cost.stages, timeline.schedule
    step = {"F": 1, "B": -1, "I": -1}.get(action.kind, 0)
    other = action.stage + step
    if not step or not 0 <= other < len(stages):
        return 0.0
    if schedule.rank_of(action.stage, action.microbatch) == schedule.rank_of(other, action.microbatch):
        return 0.0
    return stages[action.stage].send_forward_s if step > 0 else stages[action.stage].send_backward_s


def _positive(terms: Terms) -> Iterator[tuple[str, float]]:
    return ((name, seconds) for name, seconds in terms.items() if seconds > 0)


def _words(entry: Entry) -> str:
    return " + ".join(f"{action.kind}{action.microbatch}" for action in parts(entry))


def _about(entry: Entry) -> dict[str, Any]:
    """What a reader may want to know of an action."""
    first, *_ = actions = parts(entry)
    return {
        "kind": " + ".join(KINDS[action.kind] for action in actions),
        "stage": first.stage if len(actions) == 1 else [action.stage for action in actions],
        "microbatch": first.microbatch if len(actions) == 1 else [action.microbatch for action in actions],
    }


def _slice(
    name: str, category: str, rank: int, row: int, start_s: float, end_s: float, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "ph": "X", "name": name, "cat": category, "pid": rank, "tid": row,
        "ts": microseconds(start_s), "dur": microseconds(end_s - start_s), "args": dict(about or {}),
    }  # fmt: skip


def _meta(kind: str, rank: int, row: int = 0, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": row, "args": args}
