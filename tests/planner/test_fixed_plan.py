from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from planner import plan_file
from planner.errors import UsageError
from planner.fixed_plan import even_cuts, fixed_plan
from planner.layouts.model import analyse_model
from planner.plan import Candidate, PlanInputs
from planner.solvers.plan_price import predict_plan
from planner.solvers.prices import price_blocks
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.step_price import price_step
from tests.planner.solvers.small import Case, setting


def candidate(**degrees: object) -> Candidate:
    named: dict[str, object] = {
        "pp": 2, "dp_replicate": 1, "dp_shard": 2, "tp": 2, "sequence_parallel": True, "zero_stage": 2,
        "microbatch_size": 1, "num_microbatches": 8, "recompute": "none",
    }  # fmt: skip
    return Candidate(**(named | degrees))  # type: ignore[arg-type]


def inputs(case: Case, c: Candidate) -> PlanInputs:
    return PlanInputs(model="gqa", hardware="toy:2x4", num_devices=c.num_devices, job=case.job)


@pytest.mark.parametrize(
    ("family", "degrees"),
    [
        ("gqa", {}),
        ("gqa", {"pp": 1, "cp": 2, "context": "ring", "dp_shard": 2, "zero_stage": 3}),
        ("gqa", {"schedule": "zb-v", "num_chunks": 2}),
        ("mixtral", {"pp": 1, "ep": 4, "dp_shard": 4}),
    ],
)
def test_a_named_layout_becomes_a_whole_plan(family: str, degrees: dict[str, object]) -> None:
    case, c = setting(family), candidate(**degrees)
    plan = fixed_plan(case, c, inputs(case, c))
    assert plan.candidate == c
    assert len(plan.stages) == c.pp * c.num_chunks
    assert plan.predicted is not None
    assert len(plan.predicted.memory) == c.pp
    assert plan.operations
    if c.data_parallel * c.num_microbatches * c.microbatch_size == case.job.global_batch:
        assert plan_file.from_json(plan_file.to_json(plan), "plan.json") == plan


def test_own_actions_cost_what_the_same_schedule_costs() -> None:
    case = setting("gqa")
    named = candidate(schedule="gpipe", num_microbatches=2)
    mine = candidate(schedule="actions", num_microbatches=2)
    rows = [[f"{rank}{kind}{m}" for kind in "FB" for m in range(2)] for rank in range(2)]
    plan = fixed_plan(case, mine, inputs(case, mine), actions=rows)
    other = fixed_plan(case, named, inputs(case, named))
    assert plan.stage_ranks == (0, 1)
    assert plan.predicted is not None
    assert other.predicted is not None
    assert plan.predicted.step_s == pytest.approx(other.predicted.step_s, rel=1e-12)
    assert plan.predicted.memory == other.predicted.memory


def test_a_prediction_is_the_simulated_step() -> None:
    case, c = setting("gqa"), candidate()
    plan = fixed_plan(case, c, inputs(case, c))
    costs = SegmentCosts(case, c, price_blocks(case, c, case.layouts.at(2)))
    assert predict_plan(case, plan).step_s == price_step(costs, even_cuts(case, c)).step_s


@pytest.mark.parametrize("pp", [1, 2, 3, 4])
def test_no_cuts_have_a_faster_slowest_stage(pp: int) -> None:
    case, c = setting("gqa"), candidate(pp=pp, dp_shard=1, zero_stage=0)
    costs = SegmentCosts(case, c, price_blocks(case, c, analyse_model(case.graph).at(2)))
    seconds = costs.forward_s + costs.backward_s

    def slowest(cuts: tuple[int, ...]) -> float:
        return max(float(seconds[a:b].sum()) for a, b in pairwise(cuts))

    n = len(seconds)
    best = min(slowest((0, *inner, n)) for inner in combinations(range(1, n), pp - 1))
    assert slowest(even_cuts(case, c)) == pytest.approx(best)


def test_degrees_that_the_model_does_not_allow() -> None:
    case = setting("gqa")
    for degrees, message in (({"tp": 3}, "tp 3 does not divide"), ({"pp": 7}, "= 7 exceeds the 6 blocks of")):
        c = candidate(**degrees)
        with pytest.raises(UsageError, match=message):
            fixed_plan(case, c, inputs(case, c))
