from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from planner.solvers.intra_op import Problem
from planner.solvers.intra_op.milp import Model
from planner.solvers.intra_op.network import ContradictionError, fits, network
from planner.solvers.intra_op.reduce import reduce
from tests.planner.solvers.intra_op.small import optimum, problems


@settings(max_examples=60)
@given(problems)
def test_whole_solutions_are_the_best_of_all_choices(problem: Problem) -> None:
    try:
        net = network(problem, problem.limit)
        reduce(net)
    except ContradictionError:
        return
    if not net.nodes:
        return
    found = Model(net).whole(10.0)
    best = optimum(problem)
    if found is None:
        assert best is None
        return
    full = net.decode(found)
    assert fits(net, found)
    assert best is not None and np.isclose(problem.cost([full[i] for i in range(problem.num_nodes)]), best)
