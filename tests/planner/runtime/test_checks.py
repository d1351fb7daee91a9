"""Plans that are not for this job or this model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from planner.errors import UsageError
from planner.job import Job
from planner.plan import ParamLayout, Plan, PlanInputs, Stage
from planner.runtime.checks import check_plan, check_world
from planner.runtime.recompute import recomputed
from tests.planner.runtime.stages import candidate


def plan(precision: str = "fp32", torch_version: str | None = None, **changes: Any) -> Plan:
    c = candidate(**changes)
    job = Job(global_batch=2, seq_len=4, precision=precision)
    inputs = PlanInputs(
        model="pair", hardware="h100-sxm:1x4", num_devices=c.num_devices, job=job, torch_version=torch_version
    )
    return Plan(inputs=inputs, candidate=c, stages=(Stage(modules=("0", "1")),))


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def test_another_number_of_processes() -> None:
    with pytest.raises(
        UsageError, match=r"for 8 devices \(pp 1 \* dp_replicate 1 \* dp_shard 4 \* cp 1 \* tp 2\).* 6 proc"
    ):
        check_world(plan(dp_shard=4, tp=2), 6)
    check_world(plan(dp_shard=4, tp=2), 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp16"}, "fp16 gradients need loss scaling"),
        ({"dp_shard": 2, "cp": 2}, r"zero_stage 0 shards nothing, but dp_shard 2 \* cp 2"),
        ({"pp": 2, "schedule": "zb-h1", "zero_stage": 3, "dp_shard": 2, "num_microbatches": 2}, "let zero_stage be 2"),
    ],
)
def test_what_cannot_run(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_plan(plan(**changes), pair())


def test_parameters_of_another_model_are_listed() -> None:
    layouts = tuple(ParamLayout(pattern=name, placements={}) for name in ("0.weight", "1.weight", "1.bias", "2.*"))
    with pytest.raises(UsageError, match=r"only in the model 0\.bias; only in the plan 1\.bias, 2\.\*\."):
        check_plan(replace(plan(), layouts=layouts), pair())
    right = tuple(ParamLayout(pattern=name, placements={}) for name in ("*.weight", "0.bias"))
    check_plan(replace(plan(), layouts=right), pair())
    other = replace(plan(), layouts=right, inputs=replace(plan().inputs, num_parameters=25))
    with pytest.raises(UsageError, match=r"has 24 parameters, the plan for pair 25"):
        check_plan(other, pair())


def test_another_torch_is_told() -> None:
    here = torch.__version__.partition("+")[0]
    with pytest.warns(UserWarning, match=f"made with torch 2.6.0; this is torch {here}"):
        check_plan(plan(torch_version="2.6.0"), pair())
    check_plan(plan(torch_version=here), pair())


def test_a_policy_of_other_frameworks() -> None:
    with pytest.raises(UsageError, match="'experts' is a policy of frameworks"):
        recomputed(lambda x: x, "experts")
