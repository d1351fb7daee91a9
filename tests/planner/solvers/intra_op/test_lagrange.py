from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.solvers.intra_op import Problem
from planner.solvers.intra_op.lagrange import Multipliers, forbid_above, lower_bound, reparametrised
from planner.solvers.intra_op.milp import Model
from planner.solvers.intra_op.network import ContradictionError, Network, cost_of, fits, network
from planner.solvers.intra_op.reduce import reduce
from tests.planner.solvers.intra_op.small import all_of, feasible_costs, grid, optimum, problems


def anything(net: Network, seed: int) -> Multipliers:
    random = np.random.default_rng(seed)
    messages = {(i, j): random.normal(size=len(net.costs(i))) for i in net.nodes for j in net.tables[i]}
    return Multipliers(random.random(len(net.held)), messages)


def reduced(problem: Problem) -> Network | None:
    try:
        net = network(problem, problem.limit)
        reduce(net)
    except ContradictionError:
        return None
    return net


@given(problems, st.integers(0, 10**6))
def test_any_multipliers_bound_from_below(problem: Problem, seed: int) -> None:
    best, net = optimum(problem), reduced(problem)
    if net is None:
        assert best is None
    elif best is not None:
        assert lower_bound(net, anything(net, seed)).value <= best


@given(problems, st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 1.0]))
def test_nothing_within_the_cutoff_is_forbidden(problem: Problem, seed: int, quantile: float) -> None:
    costs, net = sorted(feasible_costs(problem)), reduced(problem)
    if net is None or not costs:
        return
    cutoff = costs[int(quantile * (len(costs) - 1))]
    before = [choice for choice in all_of(net) if fits(net, choice) and cost_of(net, choice) <= cutoff]
    forbid_above(net, lower_bound(net, anything(net, seed)), cutoff)
    assert all(cost_of(net, choice) <= cutoff for choice in before)


def test_the_lps_duals_bound_as_well_as_the_lp() -> None:
    problem = grid(4, 5, 4, seed=1)
    net = network(problem, problem.limit)
    model = Model(net)
    bound = lower_bound(net, model.relax(10.0))
    shares = model.shares()
    lp = sum(float(shares[i] @ net.costs(i)) for i in net.nodes)
    assert bound.value > 0 and lp < bound.value  # edges cost too


def test_a_reparametrised_network_prices_choices_without_memory_alike() -> None:
    problem = grid(3, 4, 3, seed=2)
    net = network(problem, None)
    other = reparametrised(net, anything(net, 0))
    for seed in range(5):
        choice = dict(enumerate(np.random.default_rng(seed).integers(0, 3, 12).tolist()))
        assert cost_of(other, choice) == pytest.approx(cost_of(net, choice))
