from __future__ import annotations

import re

import numpy as np
import pulp
import pytest
from hypothesis import given, settings

from planner.errors import NoPlanError
from planner.solvers.intra_op import Problem, Usage, solve
from tests.planner.solvers.intra_op.small import grid, optimum, problems


@settings(max_examples=300)
@given(problems)
def test_the_optimum_is_that_of_all_choices(problem: Problem) -> None:
    best = optimum(problem)
    if best is None:
        with pytest.raises(NoPlanError, match="no choice of strategies is feasible"):
            solve(problem, time_limit_s=30)
        return
    found = solve(problem, time_limit_s=30)
    assert found.cost == problem.cost(found.choice)
    assert found.cost == pytest.approx(best, rel=0, abs=1e-9)
    assert found.bound <= best + 1e-12 * abs(best)
    assert found.gap <= 2e-12
    assert found.peak == problem.peak(found.choice)
    assert problem.limit is None or found.peak <= problem.limit


def by_pulp(problem: Problem) -> float:
    """The same problem as the textbook has it: all memory rows, all pairs."""
    model = pulp.LpProblem("strategies", pulp.LpMinimize)
    x = [[pulp.LpVariable(f"x{i}_{u}", cat="Binary") for u in range(len(c))] for i, c in enumerate(problem.costs)]
    total = [float(c[u]) * x[i][u] for i, c in enumerate(problem.costs) for u in range(len(c))]
    for row in x:
        model += pulp.lpSum(row) == 1
    for e, ((i, j), table) in enumerate(zip(problem.edges, problem.edge_costs, strict=True)):
        y = [[pulp.LpVariable(f"y{e}_{u}_{w}", 0) for w in range(table.shape[1])] for u in range(table.shape[0])]
        total += [float(table[u, w]) * y[u][w] for u in range(table.shape[0]) for w in range(table.shape[1])]
        for u in range(table.shape[0]):
            model += pulp.lpSum(y[u]) == x[i][u]
        for w in range(table.shape[1]):
            model += pulp.lpSum(row[w] for row in y) == x[j][w]
    assert problem.limit is not None
    for t in range(max(u.end for row in problem.usages for u in row)):
        live = [
            float(usage.amounts[s]) * x[i][s]
            for i, row in enumerate(problem.usages)
            for usage in row
            if usage.start <= t < usage.end
            for s in range(len(usage.amounts))
        ]
        model += pulp.lpSum(live) <= problem.limit
    model += pulp.lpSum(total)
    assert model.solve(pulp.HiGHS(msg=False)) == pulp.LpStatusOptimal
    return float(pulp.value(model.objective))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PuLP announces another way to make variables
@pytest.mark.parametrize("seed", range(3))
def test_a_medium_problem_agrees_with_the_textbook_formulation(seed: int) -> None:
    problem = grid(5, 6, 4, seed)
    found = solve(problem)
    assert found.cost == pytest.approx(by_pulp(problem)) and found.gap == 0


def test_the_same_problem_has_the_same_answer() -> None:
    problem = grid(6, 6, 4, seed=7)
    first = solve(problem)
    assert first.gap == 0 and solve(problem) == first


def test_what_time_does_not_close_has_an_honest_bound() -> None:
    problem = grid(14, 14, 6, seed=9)
    found = solve(problem, time_limit_s=2)
    assert problem.limit is not None and found.peak <= problem.limit
    assert 0 < found.bound <= found.cost == problem.cost(found.choice)


def test_an_infeasible_problem_says_by_how_much() -> None:
    usage = (Usage(0, 1, np.array([4.0, 5.0])),)
    problem = Problem((np.zeros(2), np.zeros(2)), (), (), (usage, usage), limit=7.0)
    with pytest.raises(
        NoPlanError, match=re.escape("the limit is 7, and the least that any choice holds at its peak is 8")
    ):
        solve(problem)


def test_forbidden_everywhere() -> None:
    problem = Problem((np.zeros(2), np.zeros(1)), ((0, 1),), (np.full((2, 1), np.inf),), ((), ()))
    with pytest.raises(NoPlanError, match="forbidden"):
        solve(problem)


def test_nothing_to_choose() -> None:
    assert solve(Problem((), (), (), ())).cost == 0.0
