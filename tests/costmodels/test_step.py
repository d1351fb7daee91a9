from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.pipeline import closed_form_s
from costmodels.step import Seconds, StageSeconds, step_breakdown

NAMES = ("compute.gemm", "tp.collectives", "dp.parameter_gather")
ONCE = ("dp.gradient_reduce", "optimizer.step")


@st.composite
def seconds(draw: Any) -> Seconds:
    low, more, most = (draw(st.floats(0.0, 1e3)) for _ in range(3))
    return Seconds(low + more, low, low + more + most)


STAGES = st.lists(
    st.builds(
        StageSeconds,
        per_microbatch=st.fixed_dictionaries({name: seconds() for name in NAMES}),
        per_step=st.fixed_dictionaries({name: seconds() for name in ONCE}),
    ),
    min_size=1,
    max_size=6,
)


@given(STAGES, st.integers(1, 64))
def test_the_terms_add_up_to_the_closed_form_with_the_work_once_per_step(stages: list[StageSeconds], m: int) -> None:
    found = step_breakdown(stages, m, "datasheet")
    t, d = [s.microbatch_s for s in stages], [s.step_s for s in stages]
    formula = sum(t) + max((m - 1) * x + y for x, y in zip(t, d, strict=True))
    assert found.step_s == pytest.approx(formula)
    assert found.step_s == pytest.approx(sum(term.seconds for term in found.terms))
    if not any(d):
        assert found.step_s == pytest.approx(closed_form_s(t, m))


@given(STAGES, st.integers(1, 64))
def test_the_range_holds_term_by_term(stages: list[StageSeconds], m: int) -> None:
    found = step_breakdown(stages, m, "datasheet")
    assert len({term.name for term in found.terms}) == len(found.terms)
    for term in found.terms:
        assert 0 <= term.low_s <= term.seconds * (1 + 1e-12)
        assert term.seconds <= term.high_s * (1 + 1e-12)
    assert found.low_s <= found.step_s * (1 + 1e-12)
    assert found.step_s <= found.high_s * (1 + 1e-12)


def stage(gemm: float, optimizer: float = 0.0) -> StageSeconds:
    def plain(x: float) -> Seconds:
        return Seconds(x, x, x)

    return StageSeconds({"compute.gemm": plain(gemm)}, {"optimizer.step": plain(optimizer)})


def test_the_slowest_stage_names_the_terms_and_the_others_are_the_bubble() -> None:
    found = step_breakdown([stage(1.0), stage(2.0, optimizer=0.5), stage(1.5)], 4, "measured")
    assert {term.name: term.seconds for term in found.terms} == {
        "compute.gemm": 8.0,
        "optimizer.step": 0.5,
        "pp.bubble": 2.5,
    }
    assert [term.evidence for term in found.terms] == ["measured", "measured", "derived"]


def test_the_same_stage_twice_is_two_stages() -> None:
    one = stage(1.0)
    assert step_breakdown([one, one, one], 3, "measured").step_s == 5.0


def test_one_stage_has_no_bubble() -> None:
    found = step_breakdown([stage(1.0, optimizer=0.25)], 1, "measured")
    assert {term.name for term in found.terms} == {"compute.gemm", "optimizer.step"}
    assert found.step_s == 1.25
