"""A plan without a search: the layout that somebody names, completed and priced.

What a candidate leaves open is decided as `planner.planning` decides it: tensor parallelism of every parameter,
operations at least cost. Stages are cut so that the slowest is as fast as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from planner.errors import UsageError
from planner.layouts.model import analyse_model, param_layouts
from planner.plan import Candidate, ExpertPlacement, Plan, PlanInputs, Stage
from planner.solvers.block_layout.planned import planned_layouts
from planner.solvers.plan_price import predict_plan
from planner.solvers.prices import price_blocks
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.setting import Setting

if TYPE_CHECKING:
    pass


def fixed_plan(
    setting: Setting,
    candidate: Candidate,
    inputs: PlanInputs,
    *,
    actions: Sequence[Sequence[str]] = (),
    experts: Sequence[ExpertPlacement] = (),
) -> Plan:
    """The plan that a candidate means.

    Args:
        actions: every pipeline rank's own order, under the schedule ``actions`` (`planner.actions`).
    Raises:
        UsageError: degrees that the model does not allow, with the rule and its numbers.
    """
    graph = setting.graph
    layouts = analyse_model(graph, inputs.constraints.pins)
    if obstacle := layouts.obstacle(candidate.tp):
        raise UsageError(f"{obstacle} of {graph.name}: every sharded dim must split evenly over tp.")
    cuts = even_cuts(setting, candidate)
    plan = Plan(
        inputs=inputs,
        candidate=candidate,
        layouts=param_layouts(layouts, candidate),
        experts=tuple(experts),
        stages=tuple(
            Stage(modules=tuple(dict.fromkeys(m for segment in graph.segments[a:b] for m in segment.modules)))
            for a, b in pairwise(cuts)
        ),
        actions=tuple(map(tuple, actions)),
        operations=planned_layouts(setting, candidate, layouts.at(candidate.tp)),
    )
    return replace(plan, predicted=predict_plan(setting, plan))


def even_cuts(setting: Setting, candidate: Candidate) -> tuple[int, ...]:
    """First segment of every stage, and their number: the slowest stage is as fast as can be.

    Raises:
        UsageError: more stages than segments.
    """
    stages = candidate.pp * candidate.num_chunks
    layouts = analyse_model(setting.graph).at(candidate.tp)
    costs = SegmentCosts(setting, candidate, price_blocks(setting, candidate, layouts))
    seconds, named = costs.forward_s + costs.backward_s, setting.named
    if stages > named.sum():
        raise UsageError(
            f"pp {candidate.pp} * num_chunks {candidate.num_chunks} = {stages} exceeds the {int(named.sum())} blocks "
            f"of {setting.graph.name}; a stage holds one or more."
        )
    n = len(seconds)
    total = [0.0, *seconds.cumsum()]
    opens = [i for i in range(1, n) if named[i]]
    least: dict[int, tuple[float, tuple[int, ...]]] = {i: (total[i], (0,)) for i in (*opens, n)}
    for _ in range(1, stages):
        least = {
            b: min((max(worst, total[b] - total[a]), (*cuts, a)) for a, (worst, cuts) in least.items() if a < b)
            for b in (*opens, n)
            if any(a < b for a in least)
        }
    return (*least[n][1], n)
