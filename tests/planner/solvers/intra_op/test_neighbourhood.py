from __future__ import annotations

import time

import numpy as np

from planner.solvers.intra_op.branch import Best, Budget
from planner.solvers.intra_op.lagrange import Multipliers, lower_bound
from planner.solvers.intra_op.messages import Ascent
from planner.solvers.intra_op.neighbourhood import dive, improve, window
from planner.solvers.intra_op.network import cost_of, fits, held_by, network
from planner.solvers.intra_op.reduce import reduce
from tests.planner.solvers.intra_op.small import grid


def test_a_window_prices_and_holds_as_the_whole() -> None:
    problem = grid(4, 6, 4, seed=3)
    net = network(problem, problem.limit)
    random = np.random.default_rng(0)
    base = dict(enumerate(random.integers(0, 4, 24).tolist()))
    nodes = [3, 4, 5, 9, 10, 11, 16]
    piece = window(net, nodes, base, cost_of(net, base), held_by(net, base))
    for _ in range(20):
        inner = dict(enumerate(random.integers(0, 4, len(nodes)).tolist()))
        outer = {**base, **{i: inner[a] for a, i in enumerate(nodes)}}
        assert cost_of(piece, inner) == cost_of(net, outer)
        assert np.array_equal(held_by(piece, inner), held_by(net, outer))


def test_diving_finds_a_choice_and_windows_improve_it() -> None:
    problem = grid(6, 8, 5, seed=4)
    net = network(problem, problem.limit)
    reduce(net)
    multipliers = Ascent(net).climb(time.monotonic() + 0.3)
    assert lower_bound(net, multipliers).value > lower_bound(net, Multipliers(np.zeros(len(net.held)), {})).value
    choice = dive(net, multipliers)
    assert choice is not None and fits(net, choice)
    best = Best(net, 1.0, whole=True)
    best.offer(choice)
    before = best.cost
    improve(best, Budget(time.monotonic() + 30, 0), 10, multipliers, np.random.default_rng(0))
    assert best.choice is not None and fits(net, best.choice)
    assert best.cost == cost_of(net, best.choice) <= before
