from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pulp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.solvers.inter_op import Mask, Matrix, least_peak, split_stages


@st.composite
def problems(draw: Any) -> tuple[Matrix, Matrix, list[Mask]]:
    """(t, w, masks): random seconds, weights and feasibility of every stage, ties included."""
    segments, stages = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    seconds = st.integers(0, 6).map(float) if draw(st.booleans()) else st.floats(0.0, 10.0)

    def matrix(elements: st.SearchStrategy[Any]) -> np.ndarray:
        cells = draw(st.lists(elements, min_size=segments * (segments + 1), max_size=segments * (segments + 1)))
        return np.array(cells).reshape(segments, segments + 1)

    t, w = matrix(seconds), matrix(seconds)
    empty = np.arange(segments + 1)[None, :] <= np.arange(segments)[:, None]
    t[empty] = w[empty] = np.inf
    return t, w, [matrix(st.sampled_from([True, True, True, False])) for _ in range(stages)]


def all_cuts(segments: int, stages: int) -> list[tuple[int, ...]]:
    return [(0, *inner, segments) for inner in combinations(range(1, segments), stages - 1)]


def value(t: Matrix, w: Matrix, masks: list[Mask], cuts: tuple[int, ...]) -> float:
    stages = list(pairwise(cuts))
    if not all(mask[stage] for mask, stage in zip(masks, stages, strict=True)):
        return float("inf")
    return float(sum(t[stage] for stage in stages) + max(w[stage] for stage in stages))


@given(problems())
def test_the_split_is_the_best_of_all_cuts(problem: tuple[Matrix, Matrix, list[Mask]]) -> None:
    t, w, masks = problem
    best = min((value(t, w, masks, cuts) for cuts in all_cuts(len(t), len(masks))), default=float("inf"))
    found = split_stages(t, w, masks)
    if found is None:
        assert best == float("inf")
    else:
        assert found.step_s == pytest.approx(best)
        assert found.cuts in all_cuts(len(t), len(masks))
        assert value(t, w, masks, found.cuts) == pytest.approx(found.step_s)


@given(problems())
def test_the_least_peak_is_that_of_all_cuts(problem: tuple[Matrix, Matrix, list[Mask]]) -> None:
    t, w, masks = problem
    peaks = [t, t + w, w, t + t][: len(masks)]
    best = min(
        (max(peak[s] for peak, s in zip(peaks, pairwise(cuts), strict=True)) for cuts in all_cuts(len(t), len(masks))),
        default=float("inf"),
    )
    assert least_peak(peaks) == pytest.approx(best)


@given(problems())
def test_a_split_exists_exactly_where_the_least_peak_fits(problem: tuple[Matrix, Matrix, list[Mask]]) -> None:
    t, w, masks = problem
    peaks = [t + i for i in range(len(masks))]
    for capacity in (0.0, 3.0, 6.0):
        found = split_stages(t, w, [peak <= capacity for peak in peaks])
        assert (found is not None) == (least_peak(peaks) <= capacity)


def integer_programme(t: Matrix, w: Matrix, masks: list[Mask]) -> float | None:
    """The same optimum from HiGHS: one binary per (position, first, last) segment, flow from 0 to the last segment."""
    segments = len(t)
    model = pulp.LpProblem("stages", pulp.LpMinimize)
    worst = pulp.LpVariable("worst", 0)
    chosen = {
        (i, a, b): pulp.LpVariable(f"x_{i}_{a}_{b}", cat="Binary")
        for i, mask in enumerate(masks)
        for a in range(segments)
        for b in range(a + 1, segments + 1)
        if mask[a, b]
    }
    model += worst + pulp.lpSum(float(t[a, b]) * x for (_, a, b), x in chosen.items())
    for i in range(len(masks)):
        model += pulp.lpSum(x for (j, _, _), x in chosen.items() if j == i) == 1
        model += worst >= pulp.lpSum(float(w[a, b]) * x for (j, a, b), x in chosen.items() if j == i)
    for segment in range(segments):
        model += pulp.lpSum(x for (_, a, b), x in chosen.items() if a <= segment < b) == 1
    for i in range(len(masks) - 1):
        ends = pulp.lpSum(b * x for (j, _, b), x in chosen.items() if j == i)
        model += ends == pulp.lpSum(a * x for (j, a, _), x in chosen.items() if j == i + 1)
    status = model.solve(pulp.HiGHS(msg=False))
    return float(pulp.value(model.objective)) if pulp.LpStatus[status] == "Optimal" else None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PuLP announces another way to make variables
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("equal", [True, False])
def test_the_split_is_that_of_an_integer_programme(seed: int, equal: bool) -> None:
    """Sixteen segments as of a transformer: equal layers, or each with its own seconds, and a heavier head."""
    random = np.random.default_rng(seed)
    each = np.full(16, 1.0) if equal else random.uniform(0.5, 2.0, 16)
    each[-1] = 2.7
    total = np.concatenate([[0.0], np.cumsum(each)])
    t = total[None, :] - total[:-1, None]
    t[t <= 0] = np.inf
    w = 7 * t + random.uniform(0.0, 1.0, t.shape)
    masks = [np.isfinite(t) & (t <= random.uniform(3.0, 9.0)) for _ in range(4)]
    found = split_stages(t, w, masks)
    expected = integer_programme(t, w, masks)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found.step_s == pytest.approx(expected, rel=1e-6)


def test_more_stages_than_segments_have_no_split() -> None:
    one = np.array([[np.inf, 1.0]])
    assert split_stages(one, one, [np.array([[True, True]])] * 2) is None


def test_a_long_model_is_split_in_a_moment() -> None:
    """126 segments in 16 stages: the number of maxima to try stays small because equal layers share them."""
    total = np.arange(127.0)
    t = total[None, :] - total[:-1, None]
    t[t <= 0] = np.inf
    found = split_stages(t, 15 * t, [np.isfinite(t)] * 16)
    assert found is not None
    assert found.step_s == 126 + 15 * 8
