"""What papers say of bubbles and memory, against the simulation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.pipeline import in_flight
from costmodels.schedules import Cost, StageCost, Timeline, make, simulate

SECONDS = st.floats(0.01, 10.0)
RANKS = st.integers(1, 6)


def equal(
    name: str, p: int, m: int, v: int = 1, *, f: float = 1.0, i: float = 1.0, w: float = 1.0, pair_factor: float = 1.0
) -> Timeline:
    """Step of equal stages, each of one byte saved; ``f``, ``i`` and ``w`` are a stage's."""
    schedule = make(name, p, m, v)
    stages = (StageCost(f, i, w, saved_bytes=1, kept_for_weight_bytes=1),) * schedule.num_stages
    return simulate(schedule, Cost(stages, pair_factor=pair_factor))


def held(timeline: Timeline) -> list[int]:
    return [timeline.peak(rank).bytes for rank in range(timeline.schedule.num_ranks)]


@given(RANKS, st.integers(1, 12), SECONDS, SECONDS, SECONDS)
def test_gpipe_and_1f1b_idle_alike(p: int, m: int, f: float, i: float, w: float) -> None:
    for name in ("gpipe", "1f1b"):
        timeline = equal(name, p, m, f=f, i=i, w=w)
        assert [timeline.idle_s(r) for r in range(p)] == pytest.approx([(p - 1) * (f + i + w)] * p)
    assert held(equal("gpipe", p, m)) == [m] * p
    assert held(equal("1f1b", p, m)) == [in_flight(rank, p, m) for rank in range(p)]


def test_the_order_of_1f1b_by_hand() -> None:
    """Figure 4 (top) of Narayanan et al. 2021, for 3 ranks and 4 microbatches."""
    orders = [" ".join(f"{kind}{microbatch}" for kind, _, microbatch in order) for order in make("1f1b", 3, 4).orders]
    assert orders == ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]


@given(RANKS, st.integers(1, 4), st.integers(2, 4), SECONDS, SECONDS, SECONDS)
def test_chunks_divide_the_bubble(p: int, rounds: int, v: int, f: float, i: float, w: float) -> None:
    """A stage is a chunk here, so the division by ``v`` is in the seconds."""
    m = rounds * p
    assert equal("interleaved-1f1b", p, m, v, f=f, i=i, w=w).idle_s(0) == pytest.approx((p - 1) * (f + i + w))
    assert equal("looped-bfs", p, m, v, f=f, i=i, w=w).idle_s(0) == pytest.approx((p - 1) * (f + i + w))
    assert held(equal("looped-bfs", p, m, v)) == [m * v] * p
    fill = [(v - 1) * p + 2 * (p - rank) - 1 for rank in range(p)]
    assert held(equal("interleaved-1f1b", p, m, v)) == [min(n, m * v) for n in fill]


@pytest.mark.parametrize("p", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["zb-h1", "2bp"])
def test_halved_backwards_leave_a_third_of_the_bubble(name: str, p: int) -> None:
    timeline = equal(name, p, 3 * p)
    assert timeline.idle_s(0) == pytest.approx(p - 1)  # (p - 1)(f + b - 2 w)


def test_zb_h1_needs_no_more_than_1f1b_at_its_most_and_2bp_all() -> None:
    assert max(held(equal("zb-h1", 4, 16))) == 4
    assert max(held(equal("2bp", 4, 16))) == 16


@pytest.mark.parametrize("p", [1, 2, 4, 7])
def test_zb_h2_and_zb_v_have_no_gap_on_any_rank(p: int) -> None:
    for name, v, most in (("zb-h2", 1, 2 * p - 1), ("zb-v", 2, 2 * p)):
        timeline = equal(name, p, 3 * p, v)
        assert [timeline.span_s(rank) for rank in range(p)] == pytest.approx(
            [timeline.busy_s(rank) for rank in range(p)]
        )
        assert max(held(timeline)) == most
        assert timeline.step_s - timeline.busy_s(0) == pytest.approx(p - 1)


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0), (2.0, 2.0, 1.0), (1.0, 1.0, 0.5)])
def test_dualpipe_as_in_table_2_of_deepseek_v3(p: int, seconds: tuple[float, float, float]) -> None:
    f, i, w = seconds
    timeline = equal("dualpipe", p, 4 * p, f=f, i=i, w=w)
    assert timeline.idle_s(0) == pytest.approx((p / 2 - 1) * (f + i + w + i + w - 3 * w))
    assert held(timeline) == [p + 1] * p
    cut = equal("dualpipe-v", p, 4 * p, 2, f=f, i=i, w=w)
    assert cut.idle_s(0) == pytest.approx((p - 1) * (f + i + w + i + w - 3 * w))
    assert held(cut) == [2 * p + 1] * p


@pytest.mark.parametrize("p", [2, 4, 6])
@pytest.mark.parametrize("v", [1, 2, 3])
def test_units_of_zeropp_pay_one_bubble(p: int, v: int) -> None:
    for units in (1, 2, 4):
        m = units * (2 * p - 1)
        timeline = equal("zeropp", p, m, v)
        assert timeline.idle_s(0) == pytest.approx(2 * (p - 1))  # (p - 1)(f + i) of a stage
        assert max(held(timeline)) <= (2 * p - 1) * v + 2 * (p - 1)


@pytest.mark.parametrize(("p", "bubble"), [(4, 2.0), (8, 6.5)])
def test_bitpipe_of_as_many_microbatches_as_ranks(p: int, bubble: float) -> None:
    """The paper's share of ``(p - 2) / (3 m + p - 2)`` is 2 and 6 units of a rank's forward."""
    timeline = equal("bitpipe", p, p, 2, f=0.5, i=0.5, w=0.5)
    assert timeline.idle_s(0) == pytest.approx(bubble)
    assert max(held(timeline)) <= 2 * p


@pytest.mark.parametrize("p", [4, 8])
def test_waves_divide_the_bubble(p: int) -> None:
    idle = [equal("wave", p, p, v, f=1 / v, i=1 / v, w=1 / v).idle_s(0) for v in (2, 4, 8)]
    assert 3 * (p - 1) > idle[0] > 1.5 * idle[1] > 2 * idle[2]
    assert max(held(equal("wave", p, 4 * p, 2))) <= 3 * p
