from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings

from planner.errors import NoPlanError
from planner.solvers.intra_op import Problem, Usage, pareto
from tests.planner.solvers.intra_op.small import choices, problems


@settings(max_examples=80)
@given(problems)
def test_points_are_on_the_hull_of_all_choices(problem: Problem) -> None:
    points = np.array([(problem.cost(choice), problem.peak(choice)) for choice in choices(problem)])
    points = points[np.isfinite(points[:, 0])]
    if not len(points):
        with pytest.raises(NoPlanError):
            pareto(problem)
        return
    found = pareto(problem)
    assert found == pareto(problem)
    assert found[0].cost == pytest.approx(points[:, 0].min(), rel=0, abs=1e-9)
    assert found[-1].peak == points[:, 1].min()
    for one, other in pairwise(found):
        assert one.cost < other.cost and one.peak > other.peak
    for one in found:
        assert (one.cost, one.peak) == (problem.cost(one.choice), problem.peak(one.choice))
        cheaper, leaner = points[:, 0] < one.cost - 1e-9, points[:, 1] < one.peak
        dominated = (cheaper & (points[:, 1] <= one.peak)) | ((points[:, 0] <= one.cost + 1e-9) & leaner)
        assert not dominated.any()
    for weight in np.geomspace(1e-2, 1e2, 17):
        best = (points[:, 0] + weight * points[:, 1]).min()
        assert min(one.cost + weight * one.peak for one in found) == pytest.approx(best)


def test_one_time_point_needs_no_milp() -> None:
    """Saved until the end: only the last moment counts, and a knapsack's hull is its ratios in order."""
    nodes = 30
    random = np.random.default_rng(0)
    saved, again = random.integers(1, 100, (2, nodes)).astype(float)
    problem = Problem(
        costs=tuple(np.array([0.0, cost]) for cost in again),
        edges=(),
        edge_costs=(),
        usages=tuple((Usage(i, nodes, np.array([amount, 0.0])),) for i, amount in enumerate(saved)),
    )
    order = np.argsort(again / saved, kind="stable")
    found = {(one.cost, one.peak) for one in pareto(problem)}
    corners = [(again[order[:n]].sum(), saved[order[n:]].sum()) for n in range(nodes + 1)]
    ratios = (again / saved)[order]
    assert all(corners[n] in found for n in range(1, nodes) if ratios[n - 1] < ratios[n])
