"""What is left has the same optimum, and its choices decode into choices of the same cost and peak."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from planner.solvers.intra_op import Problem
from planner.solvers.intra_op.network import ContradictionError, Network, cost_of, fits, held_by, network
from planner.solvers.intra_op.reduce import reduce
from tests.planner.solvers.intra_op.small import all_of, grid, make, optimum, problems


def decoded(net: Network, choice: dict[int, int], num_nodes: int) -> tuple[int, ...]:
    full = net.decode(choice)
    return tuple(full[i] for i in range(num_nodes))


@settings(max_examples=300)
@given(problems)
def test_reductions_keep_the_optimum(problem: Problem) -> None:
    best = optimum(problem)
    try:
        net = network(problem, problem.limit)
        reduce(net)
    except ContradictionError:
        assert best is None
        return
    left = [(cost_of(net, choice), choice) for choice in all_of(net) if fits(net, choice)]
    finite = [(cost, choice) for cost, choice in left if cost < np.inf]
    if best is None:
        assert not finite
        return
    cost, choice = min(finite, key=lambda pair: pair[0])
    assert np.isclose(cost, best, rtol=0, atol=1e-9)
    full = decoded(net, choice, problem.num_nodes)
    assert np.isclose(problem.cost(full), cost, rtol=0, atol=1e-9)
    assert problem.limit is None or problem.peak(full) <= problem.limit


@given(problems)
def test_without_reductions_a_network_prices_choices_as_its_problem(problem: Problem) -> None:
    net = network(problem, np.inf)
    for choice in all_of(net)[:50]:
        full = tuple(choice.values())
        assert cost_of(net, choice) == problem.cost(full) or np.isclose(cost_of(net, choice), problem.cost(full))
        assert held_by(net, choice).max(initial=0.0) == problem.peak(full)


def test_a_chain_folds_into_nothing() -> None:
    random = np.random.default_rng(0)
    problem = Problem(
        costs=tuple(random.random(7) for _ in range(50)),
        edges=tuple((i, i + 1) for i in range(49)),
        edge_costs=tuple(random.random((7, 7)) for _ in range(49)),
        usages=((),) * 50,
    )
    net = network(problem, None)
    reduce(net)
    assert not net.nodes
    full = decoded(net, {}, 50)
    assert np.isclose(problem.cost(full), net.constant)


def test_pinned_nodes_keep_their_values() -> None:
    problem = make(3, limited=False, forbidden=0.0)
    net = network(problem, None)
    reduce(net, pinned=frozenset({0}))
    assert len(net.costs(0)) == len(problem.costs[0])


def test_a_fork_changes_by_itself() -> None:
    net = network(problem := grid(3, 3, 3, seed=0), problem.limit)
    before = cost_of(net, dict.fromkeys(range(9), 1))
    fork = net.fork()
    fork.forbid(0, np.array([True, False, False]))
    reduce(fork)
    assert cost_of(net, dict.fromkeys(range(9), 1)) == before and not net.records
