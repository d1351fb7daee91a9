"""A long step counted from a short one, against the long one run in full."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from planner.plan import Plan
from planner.runtime.dry_run.collectives import Call
from planner.runtime.dry_run.forked import in_children
from planner.runtime.dry_run.steps import shortened, whole_step
from tests.factories import plan as make_plan
from tests.planner.runtime.dry_run.programs import Program

SCHEDULES = {
    "1f1b": "Schedule1F1B",
    "interleaved-1f1b": "ScheduleInterleaved1F1B",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}


def observed(program: Program, rank: int) -> tuple[list[Call], list[int]]:
    observer = program.observe(rank)
    return observer.collectives.calls, observer.starts


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_long_step_is_known_from_a_short_one(schedule: str) -> None:
    chunks = 1 if schedule == "1f1b" else 2
    base = make_plan()
    candidate = replace(
        base.candidate,
        pp=2,
        dp_replicate=1,
        dp_shard=2,
        tp=2,
        num_microbatches=14,
        num_chunks=chunks,
        schedule=schedule,
    )
    plan = replace(base, candidate=candidate)
    short = shortened(plan)
    program = Program(sizes=(2, 2, 2), schedule=SCHEDULES[schedule], reshard=False, microbatches=14)
    few = replace(program, microbatches=short.candidate.num_microbatches)
    assert few.microbatches < 14
    for rank in (0, 7):
        (calls, _), (some, starts) = in_children([partial(observed, p, rank) for p in (program, few)])
        assert whole_step(some, starts, short, plan) == whole_step(calls, [], plan, plan)


def test_what_cannot_be_shortened() -> None:
    base = make_plan()
    long = replace(base, candidate=replace(base.candidate, pp=4, num_microbatches=64, schedule="gpipe"))
    assert shortened(long) is long
    few = replace(base, candidate=replace(base.candidate, pp=4, num_microbatches=6, schedule="1f1b"))
    assert shortened(few) is few
    assert shortened(replace(few, candidate=replace(few.candidate, num_microbatches=7))).candidate.num_microbatches == 6


def test_the_shortened_plan_obeys_the_rules_of_plans() -> None:
    plan: Plan = make_plan()
    c = replace(plan.candidate, num_microbatches=1000)
    short = shortened(replace(plan, candidate=c))
    assert short.inputs.job.global_batch == c.data_parallel * c.microbatch_size * short.candidate.num_microbatches
