"""Branch and bound by itself: `solve` would eliminate most small problems before."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings

from planner.solvers.intra_op import Problem
from planner.solvers.intra_op.branch import Best, Budget, Tree, without_records
from planner.solvers.intra_op.network import ContradictionError, fits, network
from tests.planner.solvers.intra_op.small import grid, optimum, problems


@settings(max_examples=100)
@given(problems)
def test_a_tree_closes_on_the_optimum(problem: Problem) -> None:
    best = optimum(problem)
    try:
        net = network(problem, problem.limit)
    except ContradictionError:
        assert best is None
        return
    found = Best(net, 1e-12, whole=False)
    tree = Tree(without_records(net), found)
    tree.grow(Budget(time.monotonic() + 30, 1 << 20))
    assert tree.closed
    if best is None:
        assert found.choice is None and tree.bound == np.inf
        return
    assert found.choice is not None and fits(net, found.choice)
    assert found.cost == pytest.approx(best, rel=0, abs=1e-9)


def test_what_is_open_has_a_bound_that_rises_to_the_optimum() -> None:
    problem = grid(6, 6, 4, seed=5)
    net = network(problem, problem.limit)
    found = Best(net, 1.0, whole=True)
    tree = Tree(without_records(net), found)
    bounds = []
    while not tree.closed:
        tree.grow(Budget(time.monotonic() + 30, 1))
        bounds.append(tree.bound)
    assert bounds == sorted(bounds) and bounds[-1] == found.cost
    assert found.work > 0


def test_a_bound_from_elsewhere_counts() -> None:
    net = network(problem := grid(4, 4, 3, seed=6), problem.limit)
    tree = Tree(without_records(net), Best(net, 1.0, whole=True))
    tree.raise_to(3.0)
    assert tree.bound == 3.0 and not tree.closed
