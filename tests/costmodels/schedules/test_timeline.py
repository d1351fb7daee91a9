from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.schedules import (
    NAMES,
    Action,
    Cost,
    DeadlockError,
    Schedule,
    ScheduleError,
    Span,
    StageCost,
    make,
    simulate,
)
from costmodels.schedules.actions import parts

SHAPES = [(name, 4, 8, 1 if name in ("gpipe", "1f1b", "zb-h2", "2bp", "dualpipe") else 2) for name in NAMES]
STAGE = st.builds(
    StageCost,
    *[st.floats(0.01, 5.0)] * 5,
    saved_bytes=st.integers(50, 99),
    kept_for_weight_bytes=st.integers(0, 50),
    forward_transient_bytes=st.integers(0, 99),
    backward_transient_bytes=st.integers(0, 99),
)


def by_recursion(schedule: Schedule, cost: Cost) -> list[list[float]]:
    """End of every entry, from the definitions: an independent way without orders of nodes."""
    where = {a: (r, i) for r, order in enumerate(schedule.orders) for i, e in enumerate(order) for a in parts(e)}

    def sent(action: Action) -> float:
        kind, stage, microbatch = action
        to = stage + (1 if kind == "F" else -1)
        if kind == "W" or not 0 <= to < schedule.num_stages:
            return 0.0
        if schedule.rank_of(to, microbatch) == schedule.rank_of(stage, microbatch):
            return 0.0
        return cost.stages[stage].send_forward_s if kind == "F" else cost.stages[stage].send_backward_s

    def source(action: Action) -> Action | None:
        kind, stage, microbatch = action
        if kind == "F":
            return Action("F", stage - 1, microbatch) if stage else None
        if kind == "W" or stage == schedule.num_stages - 1:
            return None
        below = Action("B", stage + 1, microbatch)
        return below if below in where else below._replace(kind="I")

    @cache
    def end(rank: int, i: int) -> float:
        actions = parts(schedule.orders[rank][i])
        inputs = [a for a in map(source, actions) if a]
        work = sum(cost.stages[a.stage].seconds(a.kind) for a in actions) * (
            cost.pair_factor if len(actions) > 1 else 1
        )
        free = end(rank, i - 1) if i else 0.0
        if not cost.sends_block:
            return max([free, *(end(*where[a]) + sent(a) for a in inputs)]) + work
        free += sum(map(sent, parts(schedule.orders[rank][i - 1]))) if i else 0.0
        return max([free, *(end(*where[a]) for a in inputs)]) + sum(map(sent, inputs)) + work

    return [[end(rank, i) for i in range(len(order))] for rank, order in enumerate(schedule.orders)]


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_simulation_is_what_the_definitions_say(shape: tuple[str, int, int, int], data: st.DataObject) -> None:
    schedule = make(*shape)
    size = schedule.num_stages
    stages = tuple(data.draw(st.lists(STAGE, min_size=size, max_size=size)))
    cost = Cost(stages, sends_block=data.draw(st.booleans()), pair_factor=data.draw(st.floats(0.5, 1.0)))
    timeline = simulate(schedule, cost)
    for rank, ends in enumerate(by_recursion(schedule, cost)):
        spans = timeline.spans(rank)
        assert [span.end_s for span in spans] == pytest.approx(ends)
        assert timeline.busy_s(rank) + timeline.idle_s(rank) == pytest.approx(timeline.step_s)
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(spans))
        assert timeline.peak(rank).bytes == most_bytes(spans, stages)


def most_bytes(spans: tuple[Span, ...], stages: tuple[StageCost, ...]) -> int:
    held = most = 0
    for span in spans:
        during = 0
        for kind, stage, _ in parts(span.entry):
            held += stages[stage].saved_bytes if kind == "F" else 0
            during += stages[stage].forward_transient_bytes if kind == "F" else stages[stage].backward_transient_bytes
        most = max(most, held + during)
        for kind, stage, _ in parts(span.entry):
            kept = stages[stage].kept_for_weight_bytes
            held -= {"F": 0, "I": stages[stage].saved_bytes - kept, "W": kept, "B": stages[stage].saved_bytes}[kind]
    assert held == 0
    return most


def test_two_stages_by_hand() -> None:
    """A transfer delays the second stage, or with `sends_block` takes both ranks' time."""
    stages = (StageCost(1.0, 1.0, 1.0, send_forward_s=0.5), StageCost(2.0, 2.0, 2.0, send_backward_s=0.25))
    spans = simulate(make("1f1b", 2, 2), Cost(stages))
    assert [(str(s.entry), s.start_s, s.end_s) for s in spans.spans(0)] == [
        ("F0 of stage 0", 0.0, 1.0),
        ("F1 of stage 0", 1.0, 2.0),
        ("B0 of stage 0", 7.75, 9.75),
        ("B1 of stage 0", 13.75, 15.75),
    ]
    blocking = simulate(make("1f1b", 2, 2), Cost(stages, sends_block=True))
    assert [s.end_s for s in blocking.spans(0)] == [1.0, 2.5, 9.75, 16.5]
    assert [s.end_s for s in blocking.spans(1)] == [3.5, 7.5, 10.25, 14.25]


def test_a_peak_knows_its_time_and_its_microbatches() -> None:
    stage = StageCost(1.0, 1.0, 1.0, saved_bytes=10, forward_transient_bytes=1, backward_transient_bytes=4)
    peak = simulate(make("1f1b", 3, 5), Cost((stage,) * 3, static_bytes=(100, 0, 0))).peak(0)
    assert (peak.bytes, peak.at_s, peak.microbatches) == (100 + 3 * 10 + 4, 7.0, 3)


def test_costs_of_another_number_of_stages_are_refused() -> None:
    with pytest.raises(ScheduleError, match="costs of 1 stages and static bytes of 0 ranks for 1f1b with 2 stages"):
        simulate(make("1f1b", 2, 2), Cost((StageCost(1.0, 1.0, 1.0),)))


def test_orders_that_wait_for_each_other_are_refused() -> None:
    orders = ((Action("B", 0, 0), Action("F", 0, 0)), (Action("F", 1, 0), Action("B", 1, 0)))
    with pytest.raises(
        DeadlockError, match=r"2 ranks wait.*rank 0 at B0 of stage 0, which needs F0 of stage 0; rank 1"
    ):
        simulate(Schedule("backward first", orders, ((0, 1),), 1), Cost((StageCost(1.0, 1.0, 1.0),) * 2))
