from __future__ import annotations

import numpy as np
import pytest

from planner.solvers.intra_op.network import cost_of, held_by, network
from planner.solvers.intra_op.ordering import order, priced_costs
from tests.planner.solvers.intra_op.small import all_of, grid, make


@pytest.mark.parametrize("seed", range(40))
def test_the_least_priced_cost_is_that_of_all_choices(seed: int) -> None:
    net = network(make(seed, forbidden=0.0), 40.0)
    random = np.random.default_rng(seed)
    prices = random.random(len(net.held)) * random.integers(0, 3)
    nodes = net.nodes
    turns = order(net, nodes, 1 << 20, random)
    assert turns.free == set(nodes)
    found = turns.least(priced_costs(net, turns.free, {}, prices))

    def priced(choice: dict[int, int]) -> float:
        return cost_of(net, choice) + float(prices @ held_by(net, choice))

    assert priced(found) == pytest.approx(min(priced(choice) for choice in all_of(net)))


@pytest.mark.parametrize("entries", [30, 200])
def test_no_table_is_larger_and_what_is_not_free_keeps_its_value(entries: int) -> None:
    problem = grid(5, 6, 4, seed=1)
    net = network(problem, problem.limit)
    random = np.random.default_rng(0)
    base = dict(enumerate(random.integers(0, 4, 30).tolist()))
    turns = order(net, range(24), entries, random)
    assert 10 < len(turns.free) < 24
    for step in turns.steps:
        assert np.prod([len(net.costs(i)) for i in (step.node, *step.scope)]) <= entries
    found = turns.least(priced_costs(net, turns.free, base, np.zeros(len(net.held))))
    assert found.keys() == turns.free
    least = cost_of(net, {**base, **found})
    for i in turns.free:
        for value in range(4):
            assert least <= cost_of(net, {**base, **found, i: value})
