"""Predicted traces against the rules of the format, the schedule and the plan's own price."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from costmodels.schedules.actions import parts
from planner.fixed_plan import fixed_plan
from planner.plan import Plan, PlanInputs, known
from planner.report.trace import HIDDEN, WORK, predicted_trace
from planner.solvers.setting import Setting
from tests.planner.solvers.small import setting
from tests.planner.solvers.test_step_price import candidate

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero 3": {},
    "zero 1": {"zero_stage": 1, "num_microbatches": 1},
    "tp, recompute": {"dp_shard": 2, "tp": 4, "sequence_parallel": True, "recompute": "full"},
    "1f1b": {"pp": 2, "dp_shard": 4, "num_microbatches": 64, "zero_stage": 1},
    "interleaved": {"pp": 2, "dp_shard": 2, "tp": 2, "num_microbatches": 4, "num_chunks": 2,
                    "schedule": "interleaved-1f1b", "zero_stage": 2},
    "zb-v": {"pp": 2, "dp_shard": 4, "num_microbatches": 4, "num_chunks": 2, "schedule": "zb-v", "zero_stage": 2},
    "dualpipe-v": {"pp": 2, "dp_shard": 4, "num_microbatches": 6, "num_chunks": 2, "schedule": "dualpipe-v",
                   "zero_stage": 1},
}  # fmt: skip


def traced(changes: dict[str, Any]) -> tuple[Setting, Plan, list[dict[str, Any]]]:
    case, chosen = setting(), candidate(**changes)
    own = Setting(case.graph, case.cluster, case.job, case.execution)
    inputs = PlanInputs(model="small", hardware="h100-sxm:1x8", num_devices=8, job=case.job)
    plan = fixed_plan(own, chosen, inputs)
    trace = predicted_trace(own, plan)
    assert json.loads(json.dumps(trace, allow_nan=False)) == trace
    return own, plan, trace["traceEvents"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_trace_is_the_plans_price_drawn(name: str) -> None:
    _, plan, events = traced(LAYOUTS[name])
    slices = [event for event in events if event["ph"] == "X"]
    ends_us = [event["ts"] + event["dur"] for event in slices if event["tid"] == WORK]
    assert max(ends_us) == pytest.approx(1e6 * known(plan.predicted).step_s)
    # Every action of the schedule stands there once, in the order of its rank.
    for rank, order in enumerate(plan.order.orders):
        actions = [event for event in slices if event["pid"] == rank and event["cat"] == "action"]
        assert [e["name"] for e in actions] == [
            " + ".join(f"{a.kind}{a.microbatch}" for a in parts(entry)) for entry in order
        ]
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-6 for a, b in pairwise(actions))


@pytest.mark.parametrize("name", LAYOUTS)
def test_terms_fill_their_actions_and_rows_nest(name: str) -> None:
    _, _, events = traced(LAYOUTS[name])
    slices = [event for event in events if event["ph"] == "X"]
    assert all(
        event["dur"] >= 0 and event["ts"] >= 0 and {"name", "cat", "pid", "tid", "args"} <= set(event)
        for event in slices
    )
    rows = {(event["pid"], event["tid"]) for event in slices}
    assert rows <= {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    for pid, tid in rows:
        row = [event for event in slices if (event["pid"], event["tid"]) == (pid, tid)]
        outer = [event for event in row if event["cat"] != "term"]
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(outer))
        for event in (e for e in row if e["cat"] == "action"):
            begin, end = event["ts"], event["ts"] + event["dur"]
            inside = [
                e for e in row if e["cat"] == "term" and begin - 1e-3 <= e["ts"] and e["ts"] + e["dur"] <= end + 1e-3
            ]
            assert sum(e["dur"] for e in inside) == pytest.approx(event["dur"], rel=1e-6)


def test_what_computation_hides_is_drawn_beside_it() -> None:
    """Exposed and hidden seconds of a term are what the plan's price says with no overlap at all."""
    _, plan, events = traced(LAYOUTS["zero 3"])
    for term in known(plan.predicted).breakdown.terms:
        if term.name.startswith("dp."):
            drawn = [e for e in events if e["name"] == term.name]
            assert sum(e["dur"] for e in drawn) == pytest.approx(1e6 * term.high_s)
            assert any(e["tid"] == HIDDEN for e in drawn)
