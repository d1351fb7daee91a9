from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import Schedule1F1B

from costmodels.pipeline import Action, closed_form_s, in_flight, one_f_one_b, simulate

PIPELINES = st.tuples(st.integers(1, 6), st.integers(1, 12))
"""(stages, microbatches)"""
SECONDS = st.floats(0.0, 10.0)


class RecordingStage:
    """Stands in for torch's `PipelineStage` and notes the order of its work."""

    is_last = False

    def __init__(self, stage_index: int) -> None:
        self.stage_index = stage_index
        self.done: list[Action] = []

    def forward_one_chunk(self, microbatch: int, *_: Any, **__: Any) -> None:
        self.done.append(Action("F", microbatch))

    def backward_one_chunk(self, microbatch: int, **_: Any) -> None:
        self.done.append(Action("B", microbatch))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("get_"):
            return lambda *_: None
        return lambda _: []


def schedule(num_stages: int, num_microbatches: int) -> list[list[Action]]:
    return [one_f_one_b(rank, num_stages, num_microbatches) for rank in range(num_stages)]


@given(PIPELINES)
def test_every_microbatch_goes_forward_and_backward_once_on_every_rank(shape: tuple[int, int]) -> None:
    num_stages, num_microbatches = shape
    for actions in schedule(num_stages, num_microbatches):
        assert len(actions) == 2 * num_microbatches
        for kind in ("F", "B"):
            assert [a.microbatch for a in actions if a.kind == kind] == list(range(num_microbatches))
        assert all(actions.index(Action("F", i)) < actions.index(Action("B", i)) for i in range(num_microbatches))


@given(PIPELINES)
def test_in_flight_is_the_most_that_the_event_list_holds_at_once(shape: tuple[int, int]) -> None:
    num_stages, num_microbatches = shape
    for rank, actions in enumerate(schedule(num_stages, num_microbatches)):
        held, most = 0, 0
        for action in actions:
            held += 1 if action.kind == "F" else -1
            most = max(most, held)
        assert held == 0
        assert most == in_flight(rank, num_stages, num_microbatches)


def test_the_order_of_a_small_pipeline_by_hand() -> None:
    """Figure 4 (top) of Narayanan et al. 2021, for 3 stages and 4 microbatches."""
    order = ["".join(f"{a.kind}{a.microbatch} " for a in actions).split() for actions in schedule(3, 4)]
    assert order == [
        ["F0", "F1", "F2", "B0", "F3", "B1", "B2", "B3"],
        ["F0", "F1", "B0", "F2", "B1", "F3", "B2", "B3"],
        ["F0", "B0", "F1", "B1", "F2", "B2", "F3", "B3"],
    ]


@pytest.mark.parametrize(("num_stages", "num_microbatches"), [(1, 1), (1, 3), (2, 2), (3, 8), (4, 4), (5, 7)])
def test_the_order_is_that_of_torchs_own_schedule(num_stages: int, num_microbatches: int) -> None:
    """What torch's `Schedule1F1B` makes a stage do; sends and receives are empty lists, so no process group is needed.

    (Its `_get_pipeline_order` would be simpler, but torch 2.13 starts the last rank there at microbatch 1.)
    """
    for rank, ours in enumerate(schedule(num_stages, num_microbatches)):
        stage = RecordingStage(rank)
        torchs = Schedule1F1B.__new__(Schedule1F1B)
        torchs._stage, torchs._num_stages, torchs._n_microbatches = stage, num_stages, num_microbatches
        torchs._loss_fn, torchs._internal_losses, torchs.scale_grads = None, [], True
        torchs._initialize_stage = lambda *_: None
        nothing = [None] * num_microbatches
        torchs._step_microbatches([()] * num_microbatches, [{}] * num_microbatches, nothing)
        assert stage.done == ours


@given(PIPELINES, SECONDS, SECONDS)
def test_equal_stages_take_exactly_the_closed_form(shape: tuple[int, int], forward_s: float, backward_s: float) -> None:
    num_stages, num_microbatches = shape
    simulated = simulate(schedule(num_stages, num_microbatches), [forward_s] * num_stages, [backward_s] * num_stages)
    assert simulated == pytest.approx((num_stages + num_microbatches - 1) * (forward_s + backward_s))
    assert closed_form_s([forward_s + backward_s] * num_stages, num_microbatches) == pytest.approx(simulated)


@given(st.lists(SECONDS, min_size=1, max_size=6), st.integers(1, 12), st.floats(0.0, 4.0))
def test_with_one_ratio_of_backward_to_forward_the_closed_form_is_never_exceeded(
    forward_s: list[float], num_microbatches: int, ratio: float
) -> None:
    backward_s = [ratio * f for f in forward_s]
    simulated = simulate(schedule(len(forward_s), num_microbatches), forward_s, backward_s)
    bound = closed_form_s([f + b for f, b in zip(forward_s, backward_s, strict=True)], num_microbatches)
    assert simulated <= bound * (1 + 1e-12)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6), st.integers(1, 12))
def test_no_pipeline_beats_its_slowest_stage_or_one_pass(
    stages: list[tuple[float, float]], num_microbatches: int
) -> None:
    forward_s, backward_s = [f for f, _ in stages], [b for _, b in stages]
    simulated = simulate(schedule(len(stages), num_microbatches), forward_s, backward_s)
    assert simulated >= max(num_microbatches * (f + b) for f, b in stages) * (1 - 1e-12)
    assert simulated >= sum(forward_s) + sum(backward_s) - 1e-9


def test_unlike_ratios_can_exceed_the_closed_form() -> None:
    """Why the docstring asks for one ratio: here forward and backward bottlenecks sit on different stages."""
    forward_s, backward_s = [0.0, 2.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]
    assert closed_form_s([2.0, 2.0, 0.0, 0.0], 3) == 8.0
    assert simulate(schedule(4, 3), forward_s, backward_s) == 12.0


def test_lists_that_wait_for_each_other_are_refused() -> None:
    backward_first = [[Action("B", 0), Action("F", 0)], [Action("F", 0), Action("B", 0)]]
    with pytest.raises(ValueError, match="wait for each other"):
        simulate(backward_first, [1.0, 1.0], [1.0, 1.0])
