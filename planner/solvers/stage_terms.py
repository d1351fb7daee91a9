"""Named seconds of one stage: what a report shows, and what a simulated step is made of."""

from __future__ import annotations

from costmodels.overlap import Exposed
from costmodels.step import Seconds, StageSeconds
from planner.solvers.data_parallel import stage_exposed_s
from planner.solvers.segment_costs import SegmentCosts


def stage_seconds(costs: SegmentCosts, a: int, b: int, *, opens: bool = True) -> StageSeconds:
    """Terms of the stage of segments [a, b), per microbatch and per step.

    Their sums are the entries of `planner.solvers.stage_costs.StageCosts.microbatch_s` and ``once_s``.

    Args:
        opens: whether it is the first stage of its rank: what a rank does once, however many stages it has, is there.
    """
    inside = [costs.prices[block] for block in costs.setting.block_of[a:b]]
    policy = costs.candidate.recompute
    passes = [p.forward for p in inside] + [p.backward for p in inside]
    again = [(share, p.again[policy]) for share, p in zip(costs.recomputed[a:b], inside, strict=True)]
    collectives = sum(p.collectives for p in passes) + sum(share * p.collectives for share, p in again)
    hidden = sum(p.hidden_collectives for p in passes) + sum(share * p.hidden_collectives for share, p in again)
    context = sum(p.context for p in passes) + sum(share * p.context for share, p in again)
    experts = sum(p.experts for p in passes) + sum(share * p.experts for share, p in again)
    send = float(costs.send_s[a] + costs.send_s[b])
    per_microbatch, per_step = costs.data_parallel
    return StageSeconds(
        per_microbatch={
            "compute.gemm": _plain(sum(p.gemm for p in passes)),
            "compute.attention": _plain(sum(p.attention for p in passes)),
            "compute.memory_bound": _plain(sum(p.memory_bound for p in passes)),
            "compute.recompute": _plain(sum(share * p.compute for share, p in again)),
            "compute.accumulate": _plain(float(costs.accumulate_s[a:b].sum())),
            "compute.host": _plain(sum(p.host for p in passes)),
            "host.offload": _plain(sum(float(exposed_s[a:b].sum()) for exposed_s in costs.offload_s)),
            "tp.collectives": Seconds(collectives, 0.0, collectives + hidden),
            "cp.attention": Seconds(context, 0.0, context),
            "ep.all_to_all": Seconds(experts, 0.0, experts),
            "pp.send_recv": Seconds(send, 0.0, send),
            **{name: _exposed(e, a, b) for name, e in per_microbatch.items()},
        },
        per_step={
            **{name: _exposed(e, a, b, opens=opens) for name, e in per_step.items()},
            "tp.gradient_reduce": _plain(float(costs.replicated_s[a:b].sum())),
            "pp.tied_gradients": _plain(costs.tied_s if opens else 0.0),
            "optimizer.clip": _plain(float(costs.clip_s[a:b].sum())),
            "optimizer.step": _plain(float(costs.optimizer_s[a:b].sum())),
        },
    )


def _plain(seconds: float) -> Seconds:
    return Seconds(seconds, seconds, seconds)


def _exposed(e: Exposed, a: int, b: int, *, opens: bool = True) -> Seconds:
    return Seconds(stage_exposed_s(e, a, b, opens=opens), e.low_s(a, b), float(e.high[a:b].sum()))
