from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings

from planner.solvers.intra_op import Problem
from planner.solvers.intra_op.lagrange import Multipliers, lower_bound
from planner.solvers.intra_op.messages import Ascent
from planner.solvers.intra_op.milp import Model
from planner.solvers.intra_op.network import ContradictionError, network
from planner.solvers.intra_op.reduce import reduce
from tests.planner.solvers.intra_op.small import grid, optimum, problems


@settings(max_examples=50)
@given(problems)
def test_the_bound_is_below_the_optimum(problem: Problem) -> None:
    best = optimum(problem)
    try:
        net = network(problem, problem.limit)
        reduce(net)
    except ContradictionError:
        return
    bound = lower_bound(net, Ascent(net).climb(time.monotonic() + 0.05)).value
    assert best is None or bound <= best


def test_climbing_comes_near_the_lp() -> None:
    problem = grid(8, 8, 5, seed=1)
    net = network(problem, problem.limit)
    nothing = lower_bound(net, Multipliers(np.zeros(len(net.held)), {})).value
    lp = lower_bound(net, Model(net).relax(10.0)).value
    climbed = lower_bound(net, Ascent(net).climb(time.monotonic() + 2.0)).value
    assert nothing < climbed <= lp * (1 + 1e-9)
    assert climbed == pytest.approx(lp, rel=0.05)
