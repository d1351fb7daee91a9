from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.schedules import Cost, ScheduleError, StageCost, make, price_step, simulate, steady
from hardware_profiles.errors import UnknownNameError

SHAPES = [
    ("gpipe", 3, 20, 1),
    ("1f1b", 4, 90, 1),
    ("1f1b", 1, 30, 1),
    ("interleaved-1f1b", 3, 120, 2),
    ("zb-h1", 4, 80, 1),
    ("zb-h1", 2, 100, 3),
    ("zb-h2", 4, 90, 1),
    ("zb-v", 3, 80, 2),
    ("dualpipe", 4, 100, 1),
    ("dualpipe-v", 3, 60, 2),
    ("wave", 2, 20, 2),
]
STAGE = st.builds(
    StageCost,
    *[st.floats(0.0, 5.0) | st.integers(1, 3).map(float)] * 5,
    saved_bytes=st.integers(50, 99),
    kept_for_weight_bytes=st.integers(0, 50),
    forward_transient_bytes=st.integers(0, 99),
    backward_transient_bytes=st.integers(0, 99),
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_few_microbatches_tell_what_all_would(shape: tuple[str, int, int, int], data: st.DataObject) -> None:
    name, p, m, v = shape
    schedule = make(*shape)
    stages = tuple(data.draw(st.lists(STAGE, min_size=p * v, max_size=p * v)))
    cost = Cost(stages, static_bytes=tuple(range(p)), sends_block=data.draw(st.booleans()), pair_factor=0.9)
    timeline = simulate(schedule, cost)
    step = price_step(name, p, m, cost, v)
    assert step.step_s == pytest.approx(timeline.step_s, rel=1e-8)
    assert step.peak_bytes == tuple(timeline.peak(rank).bytes for rank in range(p))


@pytest.mark.parametrize(
    "shape", [s for s in SHAPES if s[0] not in ("gpipe", "wave")], ids=lambda s: "-".join(map(str, s))
)
def test_equal_stages_are_not_simulated_in_full(
    shape: tuple[str, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, p, m, v = shape
    simulated = []
    monkeypatch.setattr(
        steady, "simulate", lambda schedule, cost: simulated.append(schedule) or simulate(schedule, cost)
    )
    price_step(name, p, m, Cost((StageCost(1.0, 1.0, 1.0),) * (p * v)), v)
    assert [s.num_microbatches < m for s in simulated] == [True]


def test_a_lead_that_lasts_long_is_seen_through() -> None:
    """Of two nearly equal bottlenecks one leads for long: equal increments of the step alone do not tell."""
    seconds = [(0.25, 0.25, 2.0), (0.5, 1.0005, 0.25), (1.001, 1.001, 0.5), (0.0, 0.25, 0.25)]
    cost = Cost(tuple(StageCost(*stage) for stage in seconds))
    at = {m: simulate(make("zb-h1", 4, m), cost).step_s for m in (12, 13, 14, 15, 272)}
    first = at[13] - at[12]
    assert [at[14] - at[13], at[15] - at[14]] == pytest.approx([first, first], rel=1e-12)
    assert at[272] > at[15] + 257 * first + 0.01
    assert price_step("zb-h1", 4, 272, cost).step_s == pytest.approx(at[272], rel=1e-12)


def test_what_make_refuses_is_refused() -> None:
    cost = Cost((StageCost(1.0, 1.0, 1.0),) * 2)
    with pytest.raises(UnknownNameError, match="unknown schedule"):
        price_step("2f2b", 2, 100, cost)
    with pytest.raises(ScheduleError, match="at least 1 of each"):
        price_step("1f1b", 2, 0, cost)
    with pytest.raises(ScheduleError, match="costs of 2 stages"):
        price_step("1f1b", 3, 100, cost)
