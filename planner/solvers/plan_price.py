"""What a plan is expected to do, whoever wrote it: seconds and memory of exactly its layout, stages and schedule."""

from __future__ import annotations

from planner.plan import Plan, Prediction
from planner.solvers.block_layout.planned import plan_layouts
from planner.solvers.prices import price_blocks
from planner.solvers.runtime_memory import RuntimeBytes
from planner.solvers.search import ASSUMPTIONS, model_flop
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.setting import Setting
from planner.solvers.step_price import price_step
from planner.stages import stage_cuts


def predict_plan(setting: Setting, plan: Plan) -> Prediction:
    """Price a plan: its schedule simulated, memory over time per rank of ``pp`` as the runtime holds it.

    Raises:
        UsageError: stages or layouts that are not of the model, or a degree that divides none of its sizes.
    """
    candidate, job, cluster = plan.candidate, setting.job, setting.cluster
    costs = plan_costs(setting, plan)
    cuts, own = stage_cuts(setting.graph, plan.stages), plan.order if plan.actions else None
    found = price_step(costs, cuts, own, RuntimeBytes(costs))
    peak = cluster.device.peak(setting.precision.compute_dtype) * candidate.num_devices
    flop = model_flop(setting.graph, seq_len=job.seq_len) * job.global_batch
    return Prediction(
        breakdown=found.breakdown,
        tokens_per_s=job.global_batch * job.seq_len / found.step_s,
        mfu=flop / found.step_s / peak,
        memory=found.memory,
        assumptions=ASSUMPTIONS,
    )


def plan_costs(setting: Setting, plan: Plan) -> SegmentCosts:
    """Prices of every segment as a plan lays it out."""
    layouts = plan_layouts(setting.graph, plan).at(plan.candidate.tp)
    return SegmentCosts(setting, plan.candidate, price_blocks(setting, plan.candidate, layouts))
