from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.pipeline import closed_form_s, in_flight
from costmodels.schedules import Cost, StageCost, make, simulate

SECONDS = st.floats(0.0, 10.0)


def simulated_s(stages: list[tuple[float, float]], num_microbatches: int) -> float:
    """1F1B of stages of (forward, backward) seconds."""
    cost = Cost(tuple(StageCost(forward_s, backward_s, 0.0) for forward_s, backward_s in stages))
    return simulate(make("1f1b", len(stages), num_microbatches), cost).step_s


@given(st.integers(1, 6), st.integers(1, 12))
def test_in_flight_is_the_most_that_the_event_list_holds_at_once(num_stages: int, num_microbatches: int) -> None:
    for rank, order in enumerate(make("1f1b", num_stages, num_microbatches).orders):
        held, most = 0, 0
        for kind, *_ in order:
            held += 1 if kind == "F" else -1
            most = max(most, held)
        assert held == 0
        assert most == in_flight(rank, num_stages, num_microbatches)


@given(st.integers(1, 6), st.integers(1, 12), SECONDS, SECONDS)
def test_equal_stages_take_exactly_the_closed_form(
    num_stages: int, num_microbatches: int, forward_s: float, backward_s: float
) -> None:
    simulated = simulated_s([(forward_s, backward_s)] * num_stages, num_microbatches)
    assert simulated == pytest.approx((num_stages + num_microbatches - 1) * (forward_s + backward_s))
    assert closed_form_s([forward_s + backward_s] * num_stages, num_microbatches) == pytest.approx(simulated)


@given(st.lists(SECONDS, min_size=1, max_size=6), st.integers(1, 12), st.floats(0.0, 4.0))
def test_with_one_ratio_of_backward_to_forward_the_closed_form_is_never_exceeded(
    forward_s: list[float], num_microbatches: int, ratio: float
) -> None:
    stages = [(f, ratio * f) for f in forward_s]
    bound = closed_form_s([f + b for f, b in stages], num_microbatches)
    assert simulated_s(stages, num_microbatches) <= bound * (1 + 1e-12)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6), st.integers(1, 12))
def test_no_pipeline_beats_its_slowest_stage_or_one_pass(
    stages: list[tuple[float, float]], num_microbatches: int
) -> None:
    simulated = simulated_s(stages, num_microbatches)
    assert simulated >= max(num_microbatches * (f + b) for f, b in stages) * (1 - 1e-12)
    assert simulated >= sum(f + b for f, b in stages) - 1e-9


def test_unlike_ratios_can_exceed_the_closed_form() -> None:
    """Why the docstring asks for one ratio: here forward and backward bottlenecks sit on different stages."""
    assert closed_form_s([2.0, 2.0, 0.0, 0.0], 3) == 8.0
    assert simulated_s([(0.0, 2.0), (2.0, 0.0), (0.0, 0.0), (0.0, 0.0)], 3) == 12.0
