from __future__ import annotations

import numpy as np
import pytest

from planner.solvers.intra_op import Problem, Solution, Usage


def test_cost_and_peak_by_hand() -> None:
    problem = Problem(
        costs=(np.array([1.0, 2.0]), np.array([10.0, 20.0])),
        edges=((0, 1), (1, 0)),
        edge_costs=(np.array([[0.0, 5.0], [7.0, 9.0]]), np.array([[0.5, 0.25], [0.125, 0.0]])),
        usages=(
            (Usage(0, 2, np.array([3.0, 4.0])),),
            (Usage(1, 3, np.array([5.0, 6.0])), Usage(2, 2, np.array([99.0, 99.0]))),
        ),
    )
    assert problem.cost((1, 0)) == 2 + 10 + 7 + 0.25
    assert problem.peak((1, 0)) == 4 + 5
    assert problem.num_nodes == 2


def test_the_gap_is_relative_and_never_negative() -> None:
    assert Solution((0,), cost=10.0, bound=9.0, peak=0.0).gap == pytest.approx(0.1)
    assert Solution((0,), cost=10.0, bound=11.0, peak=0.0).gap == 0.0
